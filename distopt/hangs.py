"""Who is the cause of a hang: a judgement on what the ranks reported last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from distopt.errors import SILENT
from distopt.failures import Failure
from distopt.progress import Mark, Place

_SHOWN = 16
"""Ranks whose positions are told, at most."""


class Report(NamedTuple):
    """What a rank's watchdog says of it, again and again."""

    beats: int
    """Of the watchdog so far: where they stay the same, the whole process stands still."""
    mark: Mark
    place: Place

    def __str__(self) -> str:
        return f"{self.mark}, in {self.place.where}"


def judge(earlier: Mapping[int, Report], later: Mapping[int, Report], rank: int, seconds: float) -> Failure:
    """Names the rank that the others wait for.

    That is one which is silent; or else does not wait for others. Where all wait for each other, at different
    points, it is one that is behind the others, or waits in the user's code.

    Args:
        earlier: By rank, some beats ago.
        later: By rank, now.
        rank: Whose judgement this is.
        seconds: For which it has made no progress.
    """
    silent = tuple(r for r, report in later.items() if r != rank and report.beats == earlier[r].beats)

    def innocence(r: int) -> tuple[bool, bool, int, bool]:
        mark, place = later[r].mark, later[r].place
        return r not in silent, place.waits, mark.number, place.is_ours

    cause = min(later, key=innocence)
    place = later[cause].place
    points = {(report.mark.number, report.place.where) for report in later.values()}
    reason = f"no progress for {seconds:.0f} s in {place.where}"
    if cause in silent:
        reason = f"silent for {seconds:.0f} s: {SILENT}"
    elif place.waits and len(points) > 1:
        reason += ", where it waits for ranks that are elsewhere"
    reason += "; see hang_timeout"
    ranks = [cause, *(r for r in later if r != cause)][:_SHOWN]
    positions = tuple(f"rank {r}: {'silent since ' if r in silent else ''}{later[r]}" for r in sorted(ranks))
    return Failure(
        cause,
        reason,
        str(later[cause].mark),
        silent=silent,
        told_by=rank if cause in silent else cause,
        positions=positions,
    )
