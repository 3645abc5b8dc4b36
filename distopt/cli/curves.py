"""`distopt schedule` as a person reads it in a terminal."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from distopt.monitor.output import Output
from distopt.schedule.curves import drawn
from distopt.schedule.preview import Row

if TYPE_CHECKING:
    from rich.text import Text

_WIDEST = 100


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
    width, coloured = min(out.width, _WIDEST), out.color_system is not None
    lines: list[str | Text] = [title, *drawn(rows, steps, width, log=log, coloured=coloured)]
    if notes or warnings:
        lines += ["", *notes]
        lines += [Text.assemble(("warning: ", "bold yellow"), warning) for warning in warnings]
    with out.capture() as captured:  # so that `| head` ends this command as it ends any other
        out.print(*lines, sep="\n", soft_wrap=True)
    sys.stdout.write(captured.get())
