"""Which rank or node is the odd one out. Pure: facts in, findings out."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from statistics import median, median_low
from typing import Final, TypeVar

from distopt.errors import listed
from distopt.launch.doctor.examination import Examination
from distopt.launch.doctor.facts import Facts
from distopt.launch.doctor.finding import Finding, Weight
from distopt.launch.doctor.places import Places, ranges
from distopt.launch.doctor.rules import Context, remarks

V = TypeVar("V", bound=Hashable)

SKEW: Final = 1.0
"""Seconds that a node's clock may differ: beyond, the order of what two nodes write is not to be told."""


def findings(examination: Examination, places: Places, workers: int = 0) -> list[Finding]:
    """All that there is to say, the most important first.

    Args:
        examination: What was found.
        places: Names of its ranks and nodes.
        workers: `data.num_workers`.
    """
    everyone = examination.everyone
    context = Context(len({facts.host for facts in everyone}), examination.size, workers)
    found = [*_absent(examination), *_common(everyone, context, places), *_cut_off(examination, places)]
    found += [
        *_groups(examination, places),
        *_shared_devices(everyone, places),
        *_work_dirs(examination, places),
    ]
    found += [*_differences(everyone, places), *_clocks(examination, places), *_slow(examination, places)]
    return sorted(found, key=lambda finding: finding.weight)


def comparable(facts: Facts) -> dict[str, dict[str, str]]:
    """What should be the same on every rank, as it is shown: kind → name → value."""
    device = facts.device
    bound = f", bound to {len(facts.bound_to)}" if facts.bound_to != facts.numa else ""
    node = {
        "ranks": str(facts.local_world),
        "GPUs": f"{facts.devices} × {device.name}, {_gib(device.total)}" if device else str(facts.devices),
        "cores": str(facts.cores),
        "NUMA nodes": f"{len(facts.numa)}{bound}",
        "/dev/shm": _gib(facts.shm),
    }
    if facts.infiniband:
        node["RDMA"] = ", ".join(facts.infiniband)
    limits = {name: "unlimited" if limit is None else str(limit) for name, limit in facts.limits.items()}
    shown = {
        "software": dict(facts.versions),
        "node": node,
        "ulimit": limits,
        "environment": dict(facts.variables),
    }
    if facts.work_dir:
        shown["work_dir"] = {"work_dir": facts.work_dir.path, "file system": facts.work_dir.kind}
    return shown


def spread(values: Mapping[int, V]) -> list[tuple[V, list[int]]]:
    """Each value and the ranks that have it: the most frequent first, then that of the lowest rank."""
    ranks: dict[V, list[int]] = {}
    for rank, value in values.items():
        ranks.setdefault(value, []).append(rank)
    return sorted(ranks.items(), key=lambda entry: (-len(entry[1]), entry[1][0]))


def spreads(everyone: list[Facts]) -> dict[tuple[str, str], list[tuple[str, list[int]]]]:
    """The `spread` of all that is comparable, by kind and name; where a rank has none, it is `unset`."""
    shown = {
        facts.rank: {
            (kind, name): value for kind, named in comparable(facts).items() for name, value in named.items()
        }
        for facts in everyone
    }
    keys = dict.fromkeys(key for values in shown.values() for key in values)
    return {key: spread({rank: values.get(key, "unset") for rank, values in shown.items()}) for key in keys}


def _absent(examination: Examination) -> Iterator[Finding]:
    if examination.missing:
        yield Finding(
            Weight.FAULT,
            "has not come: look whether its process runs there, and reaches MASTER_ADDR",
            ranges(examination.missing),
        )


def _common(everyone: list[Facts], context: Context, places: Places) -> Iterator[Finding]:
    """What is odd about single ranks, told once for all of whom it is true."""
    ranks: dict[tuple[Weight, str], list[int]] = {}
    for facts in everyone:
        for remark in remarks(facts, context):
            ranks.setdefault(remark, []).append(facts.rank)
    for (weight, text), own in ranks.items():
        yield Finding(weight, text, places.name(own))


def _differences(everyone: list[Facts], places: Places) -> Iterator[Finding]:
    for (kind, name), groups in spreads(everyone).items():
        label = f"ulimit {name}" if kind == "ulimit" else name
        (usual, most), *others = groups
        for value, ranks in others[:3]:
            where = "rank 0's" if len(ranks) == len(most) else "most have"
            yield Finding(Weight.ODD, f"{label}: {value}; {where} {usual}", places.name(ranks))
        if others[3:]:
            left = [rank for _, ranks in others[3:] for rank in ranks]
            yield Finding(Weight.ODD, f"{label}: {len(others[3:])} more values", places.name(left))


def _cut_off(examination: Examination, places: Places) -> Iterator[Finding]:
    """Which node others cannot reach, or which cannot reach others: by what takes fewer lines."""
    pairs = [(a, b, why) for a, cut in examination.cut_off.items() for b, why in cut.items()]
    by_target = len({b for _, b, _ in pairs}) <= len({a for a, _, _ in pairs})
    ends: dict[int, list[tuple[int, str]]] = {}
    for a, b, why in pairs:
        ends.setdefault(b if by_target else a, []).append((a if by_target else b, why))
    for end, met in ends.items():
        all_others = len(met) == len(places.ranks) - 1 > 1
        others = "all other nodes" if all_others else listed([places.node(rank) for rank, _ in met])
        way = "from" if by_target else "to"
        yield Finding(Weight.FAULT, f"no connection {way} {others}: {met[0][1]}", places.node(end))


def _groups(examination: Examination, places: Places) -> Iterator[Finding]:
    failed = {rank: found for rank, found in examination.measured.items() if isinstance(found, str)}
    for text, ranks in spread(failed)[:-5:-1]:  # the few that others wait for come first
        yield Finding(Weight.FAULT, f"does not get through {text}", places.name(ranks))


def _shared_devices(everyone: list[Facts], places: Places) -> Iterator[Finding]:
    for uuid, ranks in spread({facts.rank: facts.device.uuid for facts in everyone if facts.device}):
        if len(ranks) > 1:
            yield Finding(Weight.FAULT, f"have one GPU, {uuid}: see CUDA_VISIBLE_DEVICES", places.name(ranks))


def _work_dirs(examination: Examination, places: Places) -> Iterator[Finding]:
    told = {facts.rank for facts in examination.everyone if facts.work_dir and facts.work_dir.problem}
    apart = set(examination.apart) - told
    if apart and 0 not in told:
        yield Finding(
            Weight.FAULT,
            "work_dir is not the same directory as rank 0's: it has to be on storage that all nodes share",
            places.name(apart),
        )


def _clocks(examination: Examination, places: Places) -> Iterator[Finding]:
    mine = examination.measured.get(0)
    clocks = [] if mine is None or isinstance(mine, str) else [(0, 0.0, 0.0), *mine.clocks]
    usual = median_low(offset for _, offset, _ in clocks) if clocks else 0.0
    for rank, offset, error in clocks:
        if abs(offset - usual) > SKEW + error:
            which = "ahead of" if offset > usual else "behind"
            yield Finding(
                Weight.ODD,
                f"its clock is {abs(offset - usual):.1f} s {which} the others: chronyc tracking",
                places.node(rank),
            )


def _slow(examination: Examination, places: Places) -> Iterator[Finding]:
    measured = {rank: found for rank, found in examination.measured.items() if not isinstance(found, str)}
    if not measured:
        return
    usual = median_low(found.work for found in measured.values())
    most = 1.25 if any("nccl" in found.all_reduce for found in measured.values()) else 3.0
    for rank, found in measured.items():
        if found.work > most * usual:
            times = f"{found.work / usual:.1f} times as long as others"
            yield Finding(
                Weight.ODD, f"the same work takes {times}: throttled, or shared", places.name([rank])
            )
    links = measured[0].links if 0 in measured else []
    usual = median(speed for *_, speed in links) if len(links) > 2 else 0.0
    for rank, _, speed in links:
        if speed < usual / 2:
            yield Finding(
                Weight.ODD,
                f"its link has {speed / 1e9:.2g} GB/s, others have {usual / 1e9:.2g}",
                places.node(rank),
            )


def _gib(count: float) -> str:
    return f"{count / 2**30:.3g} GiB"
