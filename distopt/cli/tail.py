"""`distopt tail`: shows how a run, or several, are doing, from their directories alone."""

from __future__ import annotations

import json
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distopt.cli.exit import report as report_error
from distopt.errors import ConfigError

if TYPE_CHECKING:
    from rich.text import Text

    from distopt.cli.run_view import RunView, Watch
    from distopt.monitor.output import Output

DESCRIPTION = """\
Shows how a run, or several, are doing: on any machine that sees the run directory, without writing to it.
On a terminal what is shown is renewed until the run ends; in a pipe each logged row is a line."""
EPILOG = """\
examples
  distopt tail runs/quickstart
  distopt tail runs/quickstart | grep eval
  distopt tail --once runs/*
  distopt tail --json runs/* | jq -r 'select(.state == "failed") | [.run, .reason] | @tsv'

exit status: what state the run is in; of several, that of the one which is the worst off
   0  done
  75  preempted: the same command continues it
   3  running
   4  lost: it is said to be running, and has given no sign of life for more than a minute
   1  failed
   2  there is no run (without --once it is waited for), or the command line is wrong
 130  Ctrl-C
"""
EXIT_STATUS = {"failed": 1, "missing": 2, "lost": 4, "preempted": 75, "running": 3, "done": 0}
"""State → exit status; the worst first."""
INTERRUPTED = 130
_SECONDS = 1.0
"""Between two looks."""


def main(argv: Sequence[str]) -> int:
    parser = ArgumentParser(
        "distopt tail",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument("--once", action="store_true", help="print one report, and exit")
    parser.add_argument(
        "--json", action="store_true", help="print one report as JSON, a line for each run, and exit"
    )
    args = parser.parse_args(argv)

    from distopt.cli.run_view import Watch

    for run in args.runs:
        if run.exists() and not run.is_dir():
            return report_error(ConfigError("", f"{run} is a file, and no run directory"))
    watches = [Watch(run) for run in args.runs]
    if args.once or args.json:
        views: Sequence[RunView] = [watch.look() for watch in watches]
        show = _print_json if args.json else _print
        show(views)
    else:
        try:
            views = _follow(watches)
        except KeyboardInterrupt:
            return INTERRUPTED
    return exit_status(views)


def follow(
    watches: Sequence[Watch], show: Callable[[Sequence[RunView]], None], wait: Callable[[], None]
) -> Sequence[RunView]:
    """Looks at the runs and shows them, until all have ended; waits between two looks."""
    while True:
        views = [watch.look() for watch in watches]
        show(views)
        if all(view.has_ended for view in views):
            return views
        wait()


def exit_status(views: Sequence[RunView]) -> int:
    """That of the run which is the worst off."""
    states = {view.state for view in views}
    return next(status for state, status in EXIT_STATUS.items() if state in states)


def _follow(watches: Sequence[Watch]) -> Sequence[RunView]:
    from distopt.monitor.output import Output
    from distopt.monitor.progress import is_rewritable

    out = Output()
    if not is_rewritable(out):
        from distopt.cli.run_lines import Lines

        return follow(watches, Lines(watches), _wait)

    from rich.live import Live
    from rich.text import Text

    with Live(console=out, auto_refresh=False, vertical_overflow="crop") as live:
        out.show_cursor(True)  # a process that is killed would leave the terminal without one

        def show(views: Sequence[RunView]) -> None:
            live.update(Text("\n").join(_lines(views, out)), refresh=True)

        return follow(watches, show, _wait)


def _wait() -> None:
    time.sleep(_SECONDS)


def _print(views: Sequence[RunView]) -> None:
    from distopt.monitor.output import Output

    out = Output()
    with out.capture() as captured:  # so that `| head` ends this command as it ends any other
        out.print(*_lines(views, out), sep="\n", soft_wrap=True)
    sys.stdout.write(captured.get())


def _print_json(views: Sequence[RunView]) -> None:
    from distopt.monitor.jsonl import finite

    for view in views:
        print(json.dumps(finite(view.to_dict()), allow_nan=False))


def _lines(views: Sequence[RunView], out: Output) -> list[Text]:
    from distopt.cli.run_report import report, table

    if len(views) > 1:
        return table(views, out.width)
    return report(views[0], out.width, out.height if out.is_terminal else sys.maxsize)
