"""Curves as a figure in a file, by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from distopt.errors import ConfigError, fitting
from distopt.schedule.plot import log_floor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from distopt.schedule.preview import Curve, Row

_SUFFIXES = (".png", ".svg", ".pdf")
_FEW = 10
"""Curves that colours alone can tell apart: more have shades, in their order."""
_LONGEST = 32
"""Of a line of the legend."""
_COLUMN = 16
"""Lines of a legend side by side with the next column."""


def check(path: Path) -> None:
    """Finds what can be found before there is anything to draw.

    Raises:
        ConfigError: The file is of an unknown kind, or matplotlib is missing.
    """
    if path.suffix.lower() not in _SUFFIXES:
        allowed = "a name that ends in .png, .svg or .pdf"
        raise ConfigError("--out", "unknown kind of file", given=str(path), allowed=allowed)
    if find_spec("matplotlib") is None:
        problem = "needs matplotlib: pip install 'distopt[plot]'"
        raise ConfigError("--out", problem, given=str(path))


def draw(rows: Sequence[Row], path: Path, *, title: str, log: bool) -> None:
    """Writes a panel for each option that moves, or for lr where none does.

    Raises:
        ConfigError: The file cannot be written.
    """
    from matplotlib.figure import Figure

    from distopt.schedule.preview import curves

    panels = {option: curves(rows, option) for option in rows[0].values}
    moving = {option: found for option, found in panels.items() if any(curve.moves for curve in found)}
    panels = moving or panels
    height = 0.6 + sum(map(_height, panels.values()))
    figure = Figure(figsize=(10, height), dpi=150, layout="constrained")
    ratios = [_height(found) for found in panels.values()]
    axes = figure.subplots(len(panels), squeeze=False, sharex=True, height_ratios=ratios)[:, 0]
    for ax, (option, found) in zip(axes, panels.items(), strict=True):
        _panel(ax, option, [row.step for row in rows], found, log=log and option == "lr")
    axes[-1].set_xlabel("step")
    figure.suptitle(title, fontsize=11)
    try:
        figure.savefig(path)
    except OSError as error:
        problem = f"cannot be written: {error.strerror}"
        raise ConfigError("--out", problem, given=str(path)) from None


def _panel(ax: Axes, option: str, steps: Sequence[int], found: Sequence[Curve], *, log: bool) -> None:
    from matplotlib import colormaps
    from matplotlib.ticker import EngFormatter

    found = sorted(found, key=lambda curve: -max(curve.values))  # the legend from top to bottom as the curves
    few = len(found) <= _FEW
    shades = colormaps["tab10"] if few else colormaps["viridis"]
    for i, curve in enumerate(found):
        colour = shades(i) if few else shades(0.92 * i / (len(found) - 1))
        ax.plot(steps, curve.values, color=colour, linewidth=1.6 if few else 1.2)
    floor = log_floor(found)
    if log and floor > 0:
        ax.set_yscale("log")
        ax.set_ylim(bottom=max(floor, min(min(curve.values) for curve in found)) / 1.5)
    ax.set_title(option, loc="left", fontsize=10)
    ax.grid(alpha=0.3)
    ax.margins(x=0.01)
    ax.spines[["top", "right"]].set_visible(False)
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.legend(
        ax.get_lines(),
        [fitting(curve.groups, _LONGEST) for curve in found],
        loc="upper left",
        bbox_to_anchor=(1.01, 1),
        ncols=-(-len(found) // _COLUMN),
        fontsize=8,
        frameon=False,
        borderaxespad=0,
    )


def _height(found: Sequence[Curve]) -> float:
    """Inches of a panel: as its legend needs."""
    return max(3.0, 0.22 * min(len(found), _COLUMN))
