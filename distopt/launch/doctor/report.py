"""The examination as a person reads it, whether of one rank or of 512; and as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from statistics import median

from distopt.errors import listed
from distopt.launch.doctor.compare import spreads
from distopt.launch.doctor.examination import Examination, Measured, bus_bandwidth
from distopt.launch.doctor.facts import Facts
from distopt.launch.doctor.finding import Finding, Weight
from distopt.launch.doctor.places import Places
from distopt.monitor.output import Output
from distopt.monitor.units import step_time

_MARKS = {
    Weight.FAULT: ("fault", "bold red"),
    Weight.ODD: ("odd", "bold yellow"),
    Weight.NOTE: ("note", "dim"),
}

Row = tuple[str, str]
"""What, and its value."""


def write(examination: Examination, places: Places, found: Sequence[Finding]) -> None:
    """Prints what is the same everywhere once, what is not by node, and then a line for each finding."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows(examination, places):
        table.add_row(*row)
    out = Output()
    with out.capture() as captured:  # so that `| head` ends this command as it ends any other
        out.print(table)
        out.print()
        for finding in found:
            word, style = _MARKS[finding.weight]
            where = "" if finding.where == "all" else f"{finding.where}: "
            line = Text.assemble((f"{word:<5} ", style), (where, "bold"), finding.text)
            out.print(line, soft_wrap=True)
        if all(finding.weight == Weight.NOTE for finding in found):
            out.print("nothing is odd", soft_wrap=True)
    sys.stdout.writelines(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def rows(examination: Examination, places: Places) -> Iterator[Row]:
    """The table, row by row."""
    everyone = examination.everyone
    count = f"{len(everyone)} of {examination.size}" if examination.missing else str(examination.size)
    nodes = f" on {len(places.nodes)} nodes" if len(places.nodes) > 1 else ""
    yield "ranks", f"{count}{nodes}: {listed(places.nodes)}"
    yield from _comparable(everyone, places)
    yield from _addresses(everyone, places)
    free = [facts.device.free for facts in everyone if facts.device]
    if free:
        yield "GPU memory", f"at least {min(free) / 2**30:.1f} GiB free"
    spaces = [facts.work_dir.free for facts in everyone if facts.work_dir]
    if spaces:
        yield "free space", f"{min(spaces) / 2**30:,.0f} GiB"
    yield from _measurements(examination, places)


def to_json(examination: Examination, found: Sequence[Finding]) -> str:
    """All facts of all ranks."""
    content = asdict(examination) | {"missing": examination.missing}
    content["findings"] = [asdict(finding) | {"weight": finding.weight.name.lower()} for finding in found]
    return json.dumps(content, indent=1) + "\n"


def _comparable(everyone: list[Facts], places: Places) -> Iterator[Row]:
    """What all ranks have in common, a row for each kind; below it what they have not."""
    by_kind: dict[str, dict[str, list[tuple[str, list[int]]]]] = {}
    for (kind, name), groups in spreads(everyone).items():
        by_kind.setdefault(kind, {})[name] = groups
    for kind, named in by_kind.items():
        between = "=" if kind == "environment" else " "
        common = [
            groups[0][0] if name == kind else f"{name}{between}{groups[0][0]}"
            for name, groups in named.items()
            if len(groups) == 1
        ]
        if common:
            yield kind, ", ".join(common)
        for name, groups in named.items():
            for i, (value, ranks) in enumerate(groups if len(groups) > 1 else ()):
                where = "most" if len(ranks) > len(everyone) / 2 else places.name(ranks)
                yield "" if i else f"  {name}", f"{value}  ({where})"


def _addresses(everyone: list[Facts], places: Places) -> Iterator[Row]:
    """Of the first ranks of a few nodes: they are all different."""
    first = {facts.node: facts for facts in reversed(everyone)}
    shown = [first[node] for node in places.ranks][:4]
    for i, facts in enumerate(shown):
        network = facts.network
        gloo = (
            "" if network.gloo == network.towards_master else f", gloo at {network.interface(network.gloo)}"
        )
        nccl = f", NCCL at {network.interface(network.nccl)}" if network.nccl else ""
        of = f"{places.node(facts.rank)}: " if len(shown) > 1 else ""
        yield "" if i else "address", f"{of}{network.interface(network.towards_master)}{gloo}{nccl}"
    if len(places.ranks) > len(shown):
        yield "", f"and {len(places.ranks) - len(shown)} more nodes: --json"


def _measurements(examination: Examination, places: Places) -> Iterator[Row]:
    measured = {rank: found for rank, found in examination.measured.items() if isinstance(found, Measured)}
    if not measured:
        return
    size = examination.size
    for backend, mine in next(iter(measured.values())).all_reduce.items() if size > 1 else ():
        for i, (count, _) in enumerate(mine):
            seconds, rank = max((found.all_reduce[backend][i][1], rank) for rank, found in measured.items())
            speed = f", {bus_bandwidth(count, seconds, size) / 1e9:.2f} GB/s" if count >= 2**20 else ""
            amount = f"{count // 2**10} KiB" if count < 2**20 else f"{count // 2**20} MiB"
            took = f"{amount} in {step_time(seconds)}{speed}"
            yield "" if i else f"all-reduce, {backend}", f"{took}  (slowest: {places.name([rank])})"
    if size > 1:
        work, rank = max((found.work, rank) for rank, found in measured.items())
        usual = median(found.work for found in measured.values())
        longest = f"at most {step_time(work)}  (slowest: {places.name([rank])})"
        yield "the same work", f"{step_time(usual)}, {longest}"
    first = measured.get(0)
    if first and first.clocks:
        leader, offset, error = max(first.clocks, key=lambda clock: abs(clock[1]))
        beside = f"{offset * 1e3:+.2f} ms ± {error * 1e3:.2f} beside rank 0's"
        yield "clocks", f"{beside}  (furthest: {places.node(leader)})"
        leader, trip, rate = min(first.links, key=lambda link: link[2])
        link = f"{rate / 1e9:.2f} GB/s, {step_time(trip)} there and back"
        yield "links", f"{link}  (slowest: {places.node(leader)})"
