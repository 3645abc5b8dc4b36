"""Lints: what a schedule does that is probably not meant."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, pairwise

from distopt.errors import listed
from distopt.schedule.annealing import WarmupStableDecay
from distopt.schedule.plateau import ReduceOnPlateau, SlotKey
from distopt.schedule.window import Window

Bounds = Mapping[SlotKey, float]
"""The values that an entry moves, with the share of the base where it goes."""
_LOOKS = 1000
"""At about how many steps, at most, it is looked whether an entry acts."""


def lint(
    windows: Sequence[Window],
    bounds: Sequence[Bounds],
    bases: Mapping[SlotKey, float],
    names: Sequence[str],
    max_steps: int | None,
) -> tuple[str, ...]:
    """The warnings about a schedule.

    Args:
        windows: Its entries.
        bounds: For each, what it moves.
        bases: The base of every value that moves.
        names: Of all groups.
        max_steps: Where the run ends; None where that is not known.
    """
    last = math.inf if max_steps is None else max_steps
    entries = list(zip(windows, bounds, strict=True))
    return (
        *(warning for window in windows for warning in _beyond(window, last)),
        *(warning for window, moved in entries for warning in _idle(window, moved, bases, last)),
        *_neighbours([entry for entry in entries if not isinstance(entry[0].shape, ReduceOnPlateau)], last),
        *_unmoved(entries, names),
    )


def _beyond(window: Window, last: float) -> Iterator[str]:
    begin, end = window.steps
    if begin >= last:
        yield f"{window.key}: begins at step {_n(begin)}, and the run ends at {_n(last)}: it never acts"
    elif math.isfinite(end) and window.end > max(last / window.clock, window.begin + 1):
        yield f"{window.key}: its window ends at step {_n(end)}, and the run at {_n(last)}: it is broken off"
    shape = window.shape
    if isinstance(shape, WarmupStableDecay):
        both, length = int(shape.warmup) + int(shape.decay), window.end - window.begin
        if both > length:
            yield f"{window.key}: warmup and decay take {_n(both)}, and the window has {_n(length)}"


def _idle(window: Window, moved: Bounds, bases: Mapping[SlotKey, float], last: float) -> Iterator[str]:
    """An entry inside the run whose factor is 1 at every step, or that moves zeros alone."""
    begin, end = window.steps
    if begin >= last or window.is_empty or isinstance(window.shape, ReduceOnPlateau):
        return
    if not any(bases[slot] for slot in moved):
        yield f"{window.key}: all {window.param} that it moves is 0: it has no effect"
        return
    end = min(end, last)
    if math.isinf(end):
        return  # it may act later than anyone looks
    shares = {share for slot, share in moved.items() if bases[slot]}
    if all(window.factor(step, share) == 1 for share in shares for step in _looks(begin, end)):
        yield f"{window.key}: its factor is 1 in the whole run: it has no effect"


def _neighbours(entries: Sequence[tuple[Window, Bounds]], last: float) -> Iterator[str]:
    """Entries for the same values that overlap, or leave a gap."""
    for (one, its), (other, others) in combinations(entries, 2):
        begin, end = max(one.steps[0], other.steps[0]), min(one.steps[1], other.steps[1], last)
        shares = {(its[slot], others[slot]) for slot in its.keys() & others.keys()}
        if begin < end and any(
            one.factor(step, share) != 1 and other.factor(step, its_share) != 1
            for share, its_share in shares
            for step in _looks(begin, end)
        ):
            steps = (
                f"in steps {_n(begin)} to {_n(end)}" if math.isfinite(end) else f"from step {_n(begin)} on"
            )
            yield f"{one.key} and {other.key} both move {one.param} {steps}: their factors multiply"
    gaps = {
        (before.key, after.key): (before, after)
        for slot in dict.fromkeys(slot for _, moved in entries for slot in moved)
        for before, after in pairwise(
            sorted((w for w, moved in entries if slot in moved), key=lambda window: window.steps)
        )
        if before.steps[1] < after.steps[0] < last
    }
    for before, after in gaps.values():
        yield (
            f"{before.key} ends at step {_n(before.steps[1])} and {after.key} begins at step"
            f" {_n(after.steps[0])}: in between {before.param} stays where it is"
        )


def _unmoved(entries: Sequence[tuple[Window, Bounds]], names: Sequence[str]) -> Iterator[str]:
    """Groups that no entry moves, where others' are moved."""
    for param in dict.fromkeys(window.param for window, _ in entries):
        moved = {index for window, slots in entries if window.param == param for index, _ in slots}
        left = [name for index, name in enumerate(names) if index not in moved]
        if left and moved:
            yield f"no entry of param_scheduler moves {param} of {listed(left)}"


def _looks(begin: int, end: float) -> set[int]:
    """Some steps from `begin` up to and with the last before `end`; all, where they are few."""
    if math.isinf(end):
        return {begin + 2**i - 1 for i in range(40)}
    length = max(round(end) - begin, 1)
    return {begin + i * length // _LOOKS for i in range(_LOOKS)} | {begin + length - 1}


def _n(steps: float) -> str:
    return f"{steps:,.0f}"
