"""What the user sees: rank 0 writes it to standard output, the other ranks are silent."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from distopt import __version__
from distopt.monitor.groups import COLUMNS, GroupRow, group_rows, largest_group
from distopt.monitor.units import count, duration, metric, percent

if TYPE_CHECKING:
    from rich.text import Text

    from distopt.monitor.progress import Progress

_WIDEST = 120
"""Names are filled up to here: longer lines are hard to read."""
_DETAILED_GROUPS = 12
"""A plan with more groups gets one line each, to stay on a screen."""


def open_console(rank: int) -> Console:
    """The console of a rank: every method of any but rank 0's does nothing, and loads no rich."""
    return Console() if rank == 0 else cast(Console, _Silence())


class Console:
    """Prints what a run has to say."""

    def __init__(self) -> None:
        from distopt.monitor.output import Output

        self._out = Output()

    def header(self, facts: Mapping[str, str]) -> None:
        """What will be trained, how and where: a label and a text a line."""
        self._print(_text((f"distopt {__version__}", "bold")), *_labelled(facts), "")

    def groups(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """The table of the optimizer's groups.

        Args:
            groups: `plan.to_dict()["groups"]`.
        """
        lines = group_table(groups, self._out.width)
        if len(groups) > 1:
            lines.append(_text((f"The progress line shows the lr of {largest_group(groups)}.", "dim")))
        self._print(*lines, "")

    def progress(
        self,
        last_step: int,
        groups: Sequence[Mapping[str, Any]],
        baselines: Mapping[str, float],
    ) -> Progress:
        """The line that a run's rows are shown in.

        Args:
            last_step: Where the run ends.
            groups: `plan.to_dict()["groups"]`; the largest one's lr is shown.
            baselines: Losses to compare the evaluation's with.
        """
        from distopt.monitor.progress import Progress

        return Progress(self._out, last_step, largest_group(groups), baselines)

    def summary(
        self,
        work_dir: Path,
        *,
        step: int,
        seconds: float,
        loss: float | None,
        evaluation: Mapping[str, float],
        baselines: Mapping[str, float],
        checkpoint: str | None,
        best: Mapping[str, float] | None = None,
        outcome: str = "finished",
        reason: str | None = None,
    ) -> None:
        """What came out, and the command that shows the curves.

        Args:
            work_dir: The run directory.
            step: Optimizer steps done, those before a resume included.
            seconds: What this process took for its part of them.
            loss: The last training loss; None where none was logged.
            evaluation: The last evaluation's metrics; empty where there was none.
            baselines: Losses to compare the evaluation's with.
            checkpoint: The last one, relative to the run directory.
            best: The best value so far of each metric that has one.
            outcome: `finished`, or `stopped` …
            reason: … and why.
        """
        facts = {outcome: f"step {step:,} in {duration(seconds)}" + (f": {reason}" if reason else "")}
        if loss is not None:
            facts["loss/train"] = metric(loss)
        for name, value in evaluation.items():
            better = (best or {}).get(name, value)
            facts[f"eval/{name}"] = metric(value) + (f"  best {metric(better)}" if better != value else "")
        if "loss" in evaluation and baselines:
            facts["eval/loss"] += "  " + ", ".join(
                _compared(evaluation["loss"], name, value) for name, value in baselines.items()
            )
        if checkpoint is not None:
            facts["checkpoint"] = shlex.quote(_short(work_dir / checkpoint))
        facts["curves"] = tensorboard_command(work_dir)
        self._print("", *_labelled(facts))

    def note(self, text: str) -> None:
        self._print(text)

    def warning(self, text: str) -> None:
        self._print(_text(("warning: ", "bold yellow"), (text, "")))

    def _print(self, *lines: str | Text) -> None:
        """One write for all lines, none wrapped or cropped: what is longer is the terminal's to wrap."""
        self._out.print(*lines, sep="\n", soft_wrap=True)


class _Silence:
    """Stands in for `Console` on the other ranks."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


def group_table(groups: Sequence[Mapping[str, Any]], width: int) -> list[Text]:
    """The lines of the table of groups; where they are few, with the arithmetic and parameters of each.

    Args:
        groups: `plan.to_dict()["groups"]`.
        width: Of the terminal.
    """
    rows = group_rows(groups)
    table = align([COLUMNS, *map(_cells, rows)])
    lines = [_text((table[0], "dim"))]
    for row, line in zip(rows, table[1:], strict=True):
        name, rest = line[: len(row.name)], line[len(row.name) :]
        lines.append(_text((name, "bold cyan"), (rest, "")))
        if len(rows) <= _DETAILED_GROUPS:
            lines += [_text((detail, "dim")) for detail in _details(row, min(width, _WIDEST))]
    return lines


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns two spaces apart: the first and last to the left, the numbers between to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [
                f"{row[0]:<{widths[0]}}",
                *(f"{cell:>{width}}" for cell, width in zip(row[1:-1], widths[1:-1], strict=True)),
                row[-1],
            ]
        )
        for row in rows
    ]


def tensorboard_command(work_dir: Path) -> str:
    """The command that shows the run's curves, as it works from the working directory."""
    beside = Path(sys.executable).with_name("tensorboard")
    if shutil.which("tensorboard"):
        command = ["tensorboard"]
    elif beside.exists():
        command = [_short(beside)]
    else:
        command = [sys.executable, "-m", "tensorboard.main"]
    return shlex.join([*command, "--logdir", _short(work_dir)])


def _short(path: Path) -> str:
    """Relative where it is below the working directory."""
    absolute, here = path.absolute(), Path.cwd()
    return str(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute)


def _compared(loss: float, name: str, baseline: float) -> str:
    side = "below" if loss <= baseline else "above"
    return f"{abs(baseline - loss):.4f} {side} {name} {metric(baseline)}"


def _labelled(facts: Mapping[str, str]) -> list[Text]:
    width = max(map(len, facts), default=0)
    return [_text((f"  {label:<{width}}  ", "dim"), (value, "")) for label, value in facts.items()]


def _cells(row: GroupRow) -> tuple[str, ...]:
    return (
        row.name,
        str(row.tensors),
        count(row.numel),
        percent(row.share),
        row.lr,
        row.weight_decay,
        row.rule,
    )


def _details(row: GroupRow, width: int) -> list[str]:
    """The lines below a group's numbers: its arithmetic, its parameters' names in at most two lines."""
    indent = "    "
    return [indent + line for line in (*row.why, *_fill(row.names, width - len(indent), 2))]


def _fill(names: Sequence[str], width: int, most: int) -> list[str]:
    """Names, comma-separated, in at most `most` lines of `width`; what does not fit is counted."""
    lines = [""]
    for index, name in enumerate(names):
        left = len(names) - index - 1
        room = width - (len(f" and {left} more") if len(lines) == most and left else 0)
        joined = f"{lines[-1]}, {name}" if lines[-1] else name
        if len(joined) <= room or not lines[-1]:
            lines[-1] = joined
        elif len(lines) < most:
            lines[-1] += ","
            lines.append(name)
        else:
            lines[-1] += f" and {left + 1} more"
            break
    return lines


def _text(*parts: tuple[str, str]) -> Text:
    from rich.text import Text

    return Text.assemble(*parts)
