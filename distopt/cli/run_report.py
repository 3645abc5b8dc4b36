"""What `distopt tail` shows of a run, or of several, on a screen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from typing import Any

from rich.text import Text

from distopt.cli.run_view import RunView
from distopt.cli.wording import counted
from distopt.errors import fitting
from distopt.monitor.console import align
from distopt.monitor.units import compact, duration, metric, step_time

_STYLES = {
    "running": "bold green",
    "done": "bold cyan",
    "preempted": "bold yellow",
    "failed": "bold red",
    "lost": "bold red",
    "missing": "dim",
}
_WIDEST = 100
_COLUMN = 12
"""So many learning rates stand below one another, before there is a second column."""
_CELL = 22
"""The narrowest such column."""
_SPARED = ("checkpoint", "seen", "speed", "best", "eval", "eta")
"""Columns of the table that go where it is too wide, the first one first."""


def report(view: RunView, width: int, height: int) -> list[Text]:
    """The lines on one run.

    Args:
        view: The run.
        width: Of the terminal.
        height: Lines that there are; what goes beyond is left out of the learning rates.
    """
    width = min(width, _WIDEST)
    lines = [Text.assemble((view.run, "bold"), "  ", (view.state, _STYLES[view.state]), _seen(view))]
    if view.state == "missing":
        return lines
    if view.reason:
        lines.append(Text(f"  {view.reason}"))
    lines.append(_bar(view, width))
    facts = dict(_facts(view))
    label = max(map(len, facts), default=0)
    lines += [Text.assemble((f"  {name:<{label}}  ", "dim"), text) for name, text in facts.items()]
    indent = label + 4
    rates = _rates(view.training.get("lr", {}), width - indent, max(1, height - len(lines) - 1))
    for i, line in enumerate(rates):
        lines.append(Text.assemble((f"  {'lr' * (i == 0):<{label}}  ", "dim"), line))
    return lines


def table(views: Sequence[RunView], width: int) -> list[Text]:
    """A line for each run below a heading; of columns as many as fit."""
    rows = [_row(view) for view in views]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    for name in (*_SPARED, None):
        lines = align([tuple(columns), *zip(*columns.values(), strict=True)])
        if name is None or max(map(len, lines)) <= width:
            break
        columns.pop(name, None)
    texts = [Text(lines[0].rstrip(), "dim")]
    for view, line in zip(views, lines[1:], strict=True):
        name, state, rest = line.partition(f"  {view.state}")
        texts.append(Text.assemble(name, (state, _STYLES[view.state]), rest.rstrip()))
    return texts


def state_line(view: RunView) -> str:
    """A run's state as a plain line: `failed at step 120/600: rank 1 failed first: …`."""
    line = f"{view.state} at step {_of(view)}"
    if view.state == "running":
        line += f" on {view.host}" + f", restart {view.restarts}" * (view.restarts > 0)
    if view.state == "failed" and view.restarts_left:
        line += f", {counted(view.restarts_left, 'restart')} left"
    if view.state == "lost":
        line += f": not seen for {duration(view.seen or 0)}"
    return f"{line}: {view.reason}" if view.reason else line


def _seen(view: RunView) -> str:
    if view.state == "missing":
        return "  no run there yet"
    if view.seen is None:
        return ""
    before = {"running": "seen ", "lost": "last seen "}.get(view.state, "")
    return f"  {before}{duration(view.seen)} ago"


def _bar(view: RunView, width: int) -> Text:
    share = min(1.0, view.step / view.last_step) if view.last_step else 0.0
    figures = [f"step {_of(view)}"]
    if view.last_step:
        figures.append(f"{int(100 * share)}%")
    if view.eta is not None:
        figures.append(f"eta {duration(view.eta)}")
    text = "  ".join(figures)
    room = max(0, min(40, width - len(text) - 4))
    filled = round(share * room)
    return Text.assemble("  ", ("━" * filled, "green"), ("─" * (room - filled), "dim"), "  ", text)


def _facts(view: RunView) -> Iterator[tuple[str, str]]:
    """Label and text."""
    row, evaluation = view.training, view.evaluation
    if row:
        norm = row.get("grad_norm")
        yield "loss", metric(row["loss"]) + (f"  grad_norm {metric(norm)}" if norm is not None else "")
    for name, value in evaluation.get("eval", {}).items():
        better = evaluation.get("best", {}).get(name)
        best = "" if better is None else "  best" if better == value else f"  best {metric(better)}"
        yield f"eval/{name}", f"{metric(value)}{best}  at step {evaluation['step']:,}"
    if perf := row.get("perf"):
        yield "speed", f"{step_time(perf['step_time'])}/step  {_rate(perf)}"
    if view.checkpoint:
        age = view.checkpoint_age
        yield "checkpoint", view.checkpoint + ("" if age is None else f"  {duration(age)} ago")
    if view.host:
        yield "process", f"{view.pid} on {view.host}"
    if view.restarts or view.restarts_left:
        yield "restarts", f"{view.restarts}, {view.restarts_left} left"
    if skipped := row.get("skipped"):
        yield "skipped", f"{counted(skipped, 'step')} of this start"


def _rates(lr: Mapping[str, float], width: int, height: int) -> list[str]:
    """Each learning rate with the groups that have it, in columns where they are many."""
    groups: dict[str, list[str]] = {}
    for name, value in lr.items():
        groups.setdefault(f"{value:.2e}", []).append(name)
    if not groups:
        return []
    columns = min(ceil(len(groups) / min(_COLUMN, height)), max(1, (width + 2) // (_CELL + 2)))
    room = (width + 2) // columns - 2
    cells = [_short(f"{value}  {fitting(names, room - 10)}", room) for value, names in groups.items()]
    rows = min(height, ceil(len(cells) / columns))
    most = rows * columns
    if len(cells) > most:
        cells[most - 1 :] = [f"and {len(cells) - most + 1} more"]
    return ["  ".join(f"{cell:<{room}}" for cell in cells[i::rows]).rstrip() for i in range(rows)]


def _row(view: RunView) -> dict[str, str]:
    """The cells of a run in the table; empty where nothing is known."""
    row, evaluation = view.training, view.evaluation
    metrics = evaluation.get("eval", {})
    name = next(iter(metrics), "")
    best = evaluation.get("best", {}).get(name)
    is_there = view.state != "missing"
    return {
        "run": view.run,
        "state": f"{view.state:<9}",
        "step": _of(view) if is_there else "",
        "loss": metric(row["loss"]) if row else "",
        "eval": f"{name} {metric(metrics[name])}" if name else "",
        "best": "" if best is None else metric(best),
        "speed": f"{step_time(row['perf']['step_time'])}/step" if row.get("perf") else "",
        "eta": "" if view.eta is None else duration(view.eta),
        "seen": "" if view.seen is None else f"{duration(view.seen)} ago",
        "checkpoint": view.checkpoint or "",
    }


def _of(view: RunView) -> str:
    return f"{view.step}/{view.last_step}" if view.last_step else f"{view.step}"


def _rate(perf: Mapping[str, Any]) -> str:
    what = "tokens" if "tokens_per_second" in perf else "samples"
    return f"{compact(perf[f'{what}_per_second'])} {what}/s"


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
