"""Curves in characters: in a terminal colours tell them apart, in a pipe letters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from distopt.schedule.preview import Curve

if TYPE_CHECKING:
    from rich.text import Text

_HEIGHT = 15
_COLOURS = (33, 208, 35, 162, 135, 37)
"""Of 256: they can be read on white as on black."""
_LETTERS = "abcdef"
MOST = len(_COLOURS)
"""Curves in one plot."""


def plot(steps: Sequence[int], curves: Sequence[Curve], width: int, *, log: bool, coloured: bool) -> Text:
    """The plot of at most MOST curves.

    Args:
        steps: At which the curves have their values.
        curves: From the bottom to the top, where they cross.
        width: In characters.
        log: Draw the logarithm.
        coloured: For a terminal.
    """
    import plotext
    from rich.text import Text

    plotext.clear_figure()
    plotext.theme("clear")
    plotext.limit_size(False, False)  # to the terminal: the width has been thought of
    plotext.plot_size(width, _HEIGHT)
    floor = log_floor(curves)
    log = log and floor > 0
    for i, curve in enumerate(curves):
        points = [
            (step, math.log10(value) if log else value)
            for step, value in zip(steps, curve.values, strict=True)
            if value >= floor or not log
        ]
        look = {"marker": "braille", "color": _COLOURS[i]} if coloured else {"marker": _LETTERS[i]}
        if points:
            plotext.plot(*map(list, zip(*points, strict=True)), **look)
    values = [value for curve in curves for value in curve.values]
    rungs = (
        _decades([value for value in values if value >= floor])
        if log
        else _rungs(*_range(values), _HEIGHT // 3)
    )
    plotext.ylim(rungs[0], rungs[-1])
    plotext.yticks(rungs, [f"{10**rung:g}" if log else f"{rung:g}" for rung in rungs])
    plotext.xlim(steps[0], steps[-1])
    whole = sorted({round(mark) for mark in _rungs(0, steps[-1], width // 12)})
    marks = [mark for mark in whole if steps[0] <= mark <= steps[-1]]
    plotext.xticks(marks, [f"{mark:,}" for mark in marks])
    built = plotext.build()
    if coloured:
        return Text.from_ansi(built.rstrip())
    return Text("\n".join(line.rstrip() for line in plotext.uncolorize(built).rstrip().splitlines()))


def sign(i: int, *, coloured: bool) -> tuple[str, str]:
    """What the i-th curve of a plot is drawn with: text and style."""
    return ("━━", f"color({_COLOURS[i]})") if coloured else (_LETTERS[i], "")


def log_floor(curves: Sequence[Curve]) -> float:
    """Where a logarithmic scale begins, so that a last step near 0 leaves room for the others; 0 for none."""
    return min((peak for peak in (max(curve.values) for curve in curves) if peak > 0), default=0.0) / 1000


def _range(values: Sequence[float]) -> tuple[float, float]:
    """From the least to the greatest value, and from 0 where that is not far away."""
    low, high = min(values), max(values)
    if low == high:
        return min(low, 0.0), max(high, 0.0) or 1.0
    return (min(low, 0.0) if low < high / 2 else low), high


def _rungs(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers, the first at most `low` and the last at least `high`."""
    rough = (high - low) / max(count, 1)
    power = 10 ** math.floor(math.log10(rough))
    distance = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.floor(low / distance + 1e-9), math.ceil(high / distance - 1e-9)
    return [i * distance for i in range(first, last + 1)]


def _decades(values: Sequence[float]) -> list[float]:
    first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return [float(i) for i in range(first, max(last, first + 1) + 1)]
