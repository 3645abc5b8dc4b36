"""Curves in characters: for each option a table, a plot and who is who."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from distopt.errors import fitting
from distopt.schedule.plot import MOST, plot, sign
from distopt.schedule.preview import Curve, Row, curves

if TYPE_CHECKING:
    from rich.text import Text

_LONGEST = 16
"""Of a column's name."""


def drawn(
    rows: Sequence[Row],
    steps: Collection[int],
    width: int,
    *,
    log: bool = False,
    coloured: bool = False,
    rest: str = "distopt schedule --json and --out have all",
) -> Iterator[str | Text]:
    """The lines that show every option of `rows`, each after an empty one.

    Args:
        rows: What is drawn.
        steps: Those of the rows that the tables show.
        width: In characters.
        log: Draw lr on a logarithmic scale.
        coloured: For a terminal.
        rest: Where the curves are for which there is no room.
    """
    for option in rows[0].values:
        yield ""
        yield from _option(option, rows, steps, width, log and option == "lr", coloured, rest)


def _option(
    option: str,
    rows: Sequence[Row],
    steps: Collection[int],
    width: int,
    log: bool,
    coloured: bool,
    rest: str,
) -> Iterator[str | Text]:
    from rich.text import Text

    found = curves(rows, option)
    moves = any(curve.moves for curve in found)
    in_table = [i for i, row in enumerate(rows) if row.step in (steps if moves else (1, rows[-1].step))]
    shown, (head, *table) = _fitting(found, [rows[i].step for i in in_table], in_table, width)
    yield Text(option, "bold")
    yield Text(head, "dim")
    yield from table
    yield ""
    if moves:
        yield plot([row.step for row in rows], shown, width, log=log, coloured=coloured)
    for i, curve in enumerate(shown):
        mark, style = sign(i, coloured=coloured) if moves else ("", "")
        yield Text.assemble("  ", (mark, style), "  " if mark else "", fitting(curve.groups, width - 6))
    left = [curve.name for curve in found if curve not in shown]
    if left:
        yield Text(f"not shown: {fitting(left, width - len(rest) - 14)} ({rest})", "dim")


def _fitting(
    found: Sequence[Curve], steps: Sequence[int], places: Sequence[int], width: int
) -> tuple[list[Curve], list[str]]:
    """As many curves as fit, and the table of their values at `places`.

    Where not all do, they are of those that move, from the first to the last.
    """
    moving = [curve for curve in found if curve.moves] or found
    for count in range(min(len(found), MOST), 0, -1):
        pool = found if count == len(found) else moving
        picks = dict.fromkeys(i * (len(pool) - 1) // max(count - 1, 1) for i in range(count))
        shown = [pool[i] for i in picks]
        columns = [
            ["step", *(f"{step:,}" for step in steps)],
            *([_short(curve.name), *(f"{curve.values[i]:.4g}" for i in places)] for curve in shown),
        ]
        widths = [max(map(len, column)) for column in columns]
        if sum(widths) + 2 * len(shown) <= width or count == 1:
            break
    lines = [
        "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        for cells in zip(*columns, strict=True)
    ]
    return shown, lines


def _short(name: str) -> str:
    first, plus, more = name.partition(" +")
    room = _LONGEST - len(plus + more)
    if len(first) > room:  # names of layers differ at their ends
        first = f"{first[: room // 3]}…{first[room // 3 + 1 - room :]}"
    return first + plus + more
