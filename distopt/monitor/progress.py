"""The rows of a run as one line: rewritten in place on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from distopt.monitor.output import Output
from distopt.monitor.units import compact, duration, metric, step_time


class Progress:
    """Shows training rows in one line with the time left; evaluation rows stay above it.

    Args:
        console: On standard output.
        last_step: Where the run ends.
        lr_group: The group whose lr is shown.
        baselines: Losses to compare the evaluation's with.
    """

    def __init__(
        self,
        console: Output,
        last_step: int,
        lr_group: str,
        baselines: Mapping[str, float],
    ) -> None:
        self._console = console
        self._last_step = last_step
        self._lr_group = lr_group
        self._baselines = baselines
        self._rewrites = is_rewritable(console)
        self._live: Live | None = None
        self._best: Mapping[str, float] = {}

    def log(self, row: Mapping[str, Any]) -> None:
        if "eval" in row:
            self._console.print(self.line(row), soft_wrap=True)
        elif "loss" not in row:
            return
        elif self._rewrites:
            self._rewrite(_one_line(self._training(row), self._console.width))
        else:
            self._console.write_line(self.line(row))

    def line(self, row: Mapping[str, Any]) -> str:
        """A row as a plain line."""
        return "  ".join(self._evaluation(row) if "eval" in row else self._training(row))

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()

    def _rewrite(self, line: Text) -> None:
        if self._live is None:
            self._live = _live(self._console)
        self._live.update(line, refresh=True)

    def _training(self, row: Mapping[str, Any]) -> list[str]:
        parts = [f"step {row['step']:>{len(str(self._last_step))}}/{self._last_step}"]
        parts.append(f"loss {metric(row['loss'])}")
        if self._lr_group in row.get("lr", {}):
            parts.append(f"lr {row['lr'][self._lr_group]:.2e}")
        if perf := row.get("perf"):
            what = "tokens" if "tokens_per_second" in perf else "samples"
            parts.append(f"{step_time(perf['step_time'])}/step")
            parts.append(f"{compact(perf[f'{what}_per_second'])} {what}/s")
            parts.append(f"eta {duration((self._last_step - row['step']) * perf['step_time'])}")
        return parts

    def _evaluation(self, row: Mapping[str, Any]) -> list[str]:
        parts = [f"step {row['step']:>{len(str(self._last_step))}}"]
        best, before = row.get("best", {}), self._best
        for name, value in row["eval"].items():
            is_new_best = best.get(name) == value != before.get(name)
            parts.append(f"eval/{name} {metric(value)}" + (" (best)" if is_new_best else ""))
        self._best = best
        if "loss" in row["eval"] and self._baselines:
            others = ", ".join(f"{name} {metric(value)}" for name, value in self._baselines.items())
            parts.append(f"({others})")
        return parts


def is_rewritable(console: Console) -> bool:
    """Whether it is a terminal that can take back what it shows."""
    # FORCE_COLOR makes rich take a pipe for a terminal; a log of rewritten lines is of no use.
    return console.is_terminal and not console.is_dumb_terminal and sys.stdout.isatty()


def _one_line(parts: list[str], width: int) -> Text:
    """The parts that fit: step, loss and time left are the last to go."""
    while len("  ".join(parts)) > width and len(parts) > 3:
        parts = [*parts[:-2], parts[-1]]
    return Text("  ".join(parts), no_wrap=True, overflow="ellipsis")


def _live(console: Console) -> Live:
    # Refreshed by rows alone: a thread of rich's would take its turns between the steps.
    live = Live(
        console=console,
        auto_refresh=False,
        transient=True,
        redirect_stderr=sys.stderr.isatty(),
    )
    live.start()
    # A process that is killed would leave the terminal without a cursor.
    console.show_cursor(True)
    return live
