"""The examination: each rank's facts come to rank 0, nodes try to reach one another, then all measure."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from distopt.errors import in_one_line
from distopt.launch.doctor.directory import sees, token
from distopt.launch.doctor.examination import Examination, Measured
from distopt.launch.doctor.facts import Facts
from distopt.launch.doctor.measure import measure
from distopt.launch.doctor.meeting import Meeting, within
from distopt.launch.doctor.network import listen, unreachable
from distopt.launch.doctor.places import first_of_each_node
from distopt.launch.doctor.probe import probe


def examine(meeting: Meeting, work_dir: Path | None) -> Examination | None:
    """Called by every rank; rank 0 gets what was found.

    No step waits much longer than the meeting's timeout, whoever does not come.

    Raises:
        RuntimeError: Rank 0 is gone; or a rank runs a distopt that tells other facts.
    """
    facts = probe(work_dir)
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket) for socket in listen(_addresses(facts))]
        ends = [socket.getsockname()[:2] for socket in sockets]
        meeting.tell("facts", {"facts": facts.to_dict(), "ends": ends})
        if meeting.rank == 0:
            return _lead(meeting, facts)
        _follow(meeting, facts)
        return None


def _lead(meeting: Meeting, facts: Facts) -> Examination:
    came = meeting.hear("facts")
    everyone = [_facts(rank, told["facts"]) for rank, told in came.items()]
    leaders = first_of_each_node(everyone)
    plan: dict[str, Any] = {
        "token": uuid4().hex,
        "leaders": leaders,
        "ends": [came[leader]["ends"] for leader in leaders],
        "on_gpu": _all_have_a_gpu(everyone),
    }
    with token(facts.work_dir, plan["token"], 0):
        meeting.tell("plan", plan)
        meeting.tell("seen", _look(meeting, facts, plan))
        seen = meeting.hear("seen", came, patience=meeting.timeout)
        apart = [
            rank
            for rank, told in seen.items()
            if facts.work_dir and not (told["sees"] and sees(facts.work_dir, plan["token"], rank))
        ]
    cut_off = {
        rank: {int(other): why for other, why in told["cut_off"].items()}
        for rank, told in seen.items()
        if told["cut_off"]
    }
    listens = all(found.network.gloo for found in everyone)
    all_may_meet = listens and not cut_off and len(seen) == meeting.size
    meeting.tell("all may meet", all_may_meet)
    measured = _all_measure(meeting, facts, plan) if all_may_meet else {}
    return Examination(meeting.size, everyone, apart, cut_off, measured)


def _facts(rank: int, told: Mapping[str, Any]) -> Facts:
    try:
        return Facts.from_dict(told)
    except (KeyError, TypeError) as error:
        version = told.get("versions", {}).get("distopt", "of another version")
        raise RuntimeError(f"rank {rank} runs distopt {version}, which does not fit to this one") from error


def _all_measure(meeting: Meeting, facts: Facts, plan: Mapping[str, Any]) -> dict[int, Measured | str]:
    meeting.tell("measured", _measure(meeting, facts, plan))
    told = meeting.hear("measured", patience=meeting.timeout)
    silent: dict[int, Measured | str] = {
        rank: "the measurements: it has not answered" for rank in range(meeting.size) if rank not in told
    }
    return silent | {
        rank: found["failed"] if "failed" in found else Measured(**found) for rank, found in told.items()
    }


def _follow(meeting: Meeting, facts: Facts) -> None:
    plan = _from_rank_0(meeting, "plan")
    with token(facts.work_dir, plan["token"], meeting.rank):
        meeting.tell("seen", _look(meeting, facts, plan))
        all_may_meet = _from_rank_0(meeting, "all may meet")
    if all_may_meet:
        meeting.tell("measured", _measure(meeting, facts, plan))


def _from_rank_0(meeting: Meeting, what: str) -> Any:
    told = meeting.hear(what, [0], patience=3 * meeting.timeout)
    if not told:
        raise RuntimeError(f"rank 0 has not told {what!r}: it is gone, or cannot be reached")
    return told[0]


def _look(meeting: Meeting, facts: Facts, plan: Mapping[str, Any]) -> dict[str, Any]:
    """Whether rank 0's file is there and, from the first rank of a node, which other nodes are not."""
    peers = dict(zip(plan["leaders"], plan["ends"], strict=True))
    return {
        "sees": bool(facts.work_dir and sees(facts.work_dir, plan["token"], 0)),
        "cut_off": unreachable(
            {rank: ends for rank, ends in peers.items() if rank != meeting.rank and meeting.rank in peers},
            timeout=min(5, meeting.timeout),
        ),
    }


def _measure(meeting: Meeting, facts: Facts, plan: Mapping[str, Any]) -> dict[str, Any]:
    device = torch.device("cuda", facts.local_rank) if plan["on_gpu"] else torch.device("cpu")
    store, leaders, begun = meeting.group_store(), plan["leaders"], ["beginning"]
    try:
        found = within(
            meeting.timeout,
            lambda: measure(
                store, meeting.rank, meeting.size, leaders, meeting.timeout, device, begun.append
            ),
        )
    except Exception as error:
        return {"failed": f"{begun[-1]}: {in_one_line(error)}"}
    return asdict(found)


def _all_have_a_gpu(everyone: list[Facts]) -> bool:
    uuids = [facts.device.uuid for facts in everyone if facts.device]
    return len(set(uuids)) == len(everyone)


def _addresses(facts: Facts) -> set[str]:
    return {address for address in (facts.network.gloo, facts.network.nccl) if address}
