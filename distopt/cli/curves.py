"""Curves as a person reads them in a terminal: for each option a table, a plot and who is who."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from distopt.cli.plot import MOST, plot, sign
from distopt.cli.wording import fitting
from distopt.monitor.output import Output
from distopt.schedule.preview import Curve, Row, curves

if TYPE_CHECKING:
    from rich.text import Text

_WIDEST = 100
_LONGEST = 16
"""Of a column's name."""


def show(
    title: str,
    rows: Sequence[Row],
    steps: Collection[int],
    *,
    log: bool,
    notes: Sequence[str],
    warnings: Sequence[str],
) -> None:
    """Prints all that there is to see of a schedule.

    Args:
        title: The first line.
        rows: What is drawn.
        steps: Those of the rows that the tables show.
        log: Whether lr is drawn on a logarithmic scale.
        notes: Lines below the plots.
        warnings: The schedule's.
    """
    from rich.text import Text

    out = Output()
    lines: list[str | Text] = [title]
    for option in rows[0].values:
        lines += ["", *_option(option, rows, steps, log=log and option == "lr", out=out)]
    if notes or warnings:
        lines += ["", *notes]
        lines += [Text.assemble(("warning: ", "bold yellow"), warning) for warning in warnings]
    with out.capture() as captured:  # so that `| head` ends this command as it ends any other
        out.print(*lines, sep="\n", soft_wrap=True)
    sys.stdout.write(captured.get())


def _option(
    option: str, rows: Sequence[Row], steps: Collection[int], *, log: bool, out: Output
) -> Iterator[str | Text]:
    from rich.text import Text

    width, coloured = min(out.width, _WIDEST), out.color_system is not None
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
        yield Text(f"not shown: {fitting(left, width - 40)} (--json and --out have all)", "dim")


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
    return (first if len(first) <= room else f"{first[: room - 1]}…") + plus + more
