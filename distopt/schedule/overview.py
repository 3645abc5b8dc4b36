"""A schedule as Markdown: what it will do over the whole run, before the first step."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from distopt.errors import fitting
from distopt.schedule.curves import drawn
from distopt.schedule.plot import MOST
from distopt.schedule.preview import curves, edges, plateaus, preview, spread
from distopt.schedule.schedule import Schedule

if TYPE_CHECKING:
    import torch

_WIDTH = 120
"""In which there is room for as many curves as a plot may have."""
_POINTS = 240
"""At how many steps a curve is looked at: two for each character of the plot's width."""


def overview(schedule: Schedule, optimizer: torch.optim.Optimizer, last: int) -> str:
    """Each option's values as a plot with a table; where there are too many curves for it, all in another.

    Args:
        schedule: Of `optimizer`.
        optimizer: A trial: its groups are left with the last step's values.
        last: The run's last step.
    """
    return "\n".join(_lines(schedule, optimizer, last))


def _lines(schedule: Schedule, optimizer: torch.optim.Optimizer, last: int) -> Iterator[str]:
    marked = edges(schedule, last)
    rows = list(preview(schedule, optimizer, sorted(marked | spread(last, 4) | spread(last, _POINTS))))
    yield "```"
    lines = drawn(rows, marked | spread(last, 4), _WIDTH, rest="the table below has all")
    yield from islice(map(str, lines), 1, None)
    for window in plateaus(schedule):
        yield f"{window.key} lowers {window.param} where evaluation says so: not in these values"
    yield "```"
    places = [i for i, row in enumerate(rows) if row.step in marked | spread(last, 4)]
    for option in rows[0].values:
        found = curves(rows, option)
        if len(found) > MOST:
            yield ""
            yield f"| {option} | {' | '.join(f'step {rows[i].step:,}' for i in places)} |"
            yield f"| --- {'| ---: ' * len(places)}|"
            for curve in found:
                values = (f"{curve.values[i]:.4g}" for i in places)
                yield f"| {fitting(curve.groups, _WIDTH // 2)} | {' | '.join(values)} |"
