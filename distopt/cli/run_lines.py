"""Followed in a pipe: each row is a line as it comes, and so is each change of a run's state."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from distopt.cli.run_report import state_line
from distopt.cli.run_view import RunView, Watch
from distopt.monitor.output import Output
from distopt.monitor.progress import Progress
from distopt.monitor.rows import NewRows


class Lines:
    """Prints what is new of each run at each call; with the run's name where there are several."""

    def __init__(self, watches: Sequence[Watch]) -> None:
        self._news = [_News(watch) for watch in watches]

    def __call__(self, views: Sequence[RunView]) -> None:
        width = max(len(view.run) for view in views)
        for view, news in zip(views, self._news, strict=True):
            name = f"{view.run:<{width}}  " if len(views) > 1 else ""
            sys.stdout.writelines(f"{name}{line}\n" for line in news.of(view))
        sys.stdout.flush()


class _News:
    """What is new of one run."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._rows = NewRows(watch.directory / "metrics.jsonl")
        self._before: RunView | None = None
        self._progress: Progress | None = None

    def of(self, view: RunView) -> list[str]:
        before, self._before = self._before, view
        rows = self._rows.read()
        if view.state == "missing":
            if before is None:
                sys.stderr.write(f"{view.run}: no run yet, waiting for it\n")
            return []
        starts = before is None or _process(before) != _process(view)
        if self._progress is None or starts:
            end = view.last_step or view.step
            self._progress = Progress(Output(), end, self._watch.largest_group(), {})
        lines = [self._progress.line(row) for row in rows]
        if starts and view.state == "running":
            return [state_line(view), *lines]
        changed = before is None or before.state != view.state
        return [*lines, state_line(view)] if changed else lines


def _process(view: RunView) -> tuple[str | None, int | None]:
    return view.host, view.pid
