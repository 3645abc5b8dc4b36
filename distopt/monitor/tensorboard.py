"""A row as TensorBoard scalars, the charts that lay all groups over each other, and the run's texts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.compat.proto.tensor_pb2 import TensorProto  # type: ignore[import-untyped]
from tensorboard.plugins.custom_scalar import metadata as custom_scalars  # type: ignore[import-untyped]
from tensorboard.plugins.custom_scalar.layout_pb2 import (  # type: ignore[import-untyped]
    Layout,
    MultilineChartContent,
)
from tensorboard.plugins.text import metadata as texts  # type: ignore[import-untyped]

from distopt.monitor.event_file import EventFile, next_path
from distopt.monitor.groups import COLUMNS, group_rows
from distopt.monitor.units import count, percent

_SECTIONS = {"weight_decay": "wd", "grad_norms": "grad_norm"}
"""Rows spell out what is short on TensorBoard."""
_SINGLE = {
    "loss": "loss/train",
    "grad_norm": "grad_norm/all",
    "loss_scale": "loss/scale",
    "skipped": "loss/skipped",
}
"""Numbers of ours that stand beside others; one of a callback has its own name."""
_PER_GROUP = ("lr", "wd", "momentum", "grad_norm", "param_norm", "update_ratio")
_LINES_PER_CHART = 5
"""All lines of a run have one colour and differ by their markers only: more are not told apart."""


class TensorBoard:
    """Writes rows to an event file.

    Args:
        directory: Of the event files. TensorBoard reads those of earlier starts along with this one's.
        first_step: Optimizer steps done before. Points after it, which the run is about to repeat, are
            purged; at 0 every point.
    """

    def __init__(self, directory: Path, first_step: int) -> None:
        # Every start purges, a fresh run's too: the slow loader honours no purge if the first has none.
        self._valid_from = first_step + 1 if first_step > 0 else 0
        self._charts_drawn = False
        directory.mkdir(parents=True, exist_ok=True)
        self._file = EventFile(next_path(directory))
        self._file.append(Event(step=self._valid_from, file_version="brain.Event:2"))
        self._file.append(Event(step=self._valid_from, session_log=SessionLog(status=SessionLog.START)))

    def describe(self, config: str, groups: Sequence[Mapping[str, Any]]) -> None:
        """The texts `run/config` and `run/groups`.

        Args:
            config: The resolved config as YAML.
            groups: `plan.to_dict()["groups"]`.
        """
        self.text("run/config", f"```yaml\n{config}\n```")
        self.text("run/groups", _markdown(groups))

    def text(self, tag: str, markdown: str) -> None:
        """A text, at the step from which it holds."""
        metadata = texts.create_summary_metadata(display_name="", description="")
        self._append(_summary(tag, markdown.encode(), metadata), self._valid_from)

    def log(self, row: Mapping[str, Any]) -> None:
        """One point for every number of `row`, at its step."""
        points = dict(scalars(row))
        if not self._charts_drawn and "loss" in row:
            self._append(_layout(charts(points)), 0)
            self._charts_drawn = True
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in points.items()]
        self._append(Summary(value=values), row["step"])

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _append(self, summary: Any, step: int) -> None:
        self._file.append(Event(step=step, summary=summary))


def scalars(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Tag and value of every number in a row: `lr/<group>`, `wd/<group>`, `loss/train`, `eval/<metric>`, …"""
    for key, value in row.items():
        if isinstance(value, Mapping):
            section = _SECTIONS.get(key, key)
            yield from ((f"{section}/{name}", item) for name, item in value.items() if item is not None)
        elif isinstance(value, int | float) and key not in ("step", "epoch"):
            yield _SINGLE.get(key, key), value


def charts(tags: Iterable[str]) -> dict[str, dict[str, list[str]]]:
    """The Custom Scalars page: both losses in one chart, and each quantity of all groups.

    Returns:
        Category → title of a chart → a pattern for each of its lines.
    """
    optimizer: dict[str, list[str]] = {}
    for section in _PER_GROUP:
        of_groups = (tag for tag in tags if tag.startswith(f"{section}/") and tag != "grad_norm/all")
        lines = [f"^{re.escape(tag)}$" for tag in of_groups]
        parts = [lines[i : i + _LINES_PER_CHART] for i in range(0, len(lines), _LINES_PER_CHART)]
        for number, part in enumerate(parts, start=1):
            title = section if len(parts) == 1 else f"{section} ({number} of {len(parts)})"
            optimizer[title] = part
    return {"loss": {"loss": ["^loss/train$", r"^eval/(ema\.)?loss$"]}, "optimizer": optimizer}


def _layout(categories: Mapping[str, Mapping[str, list[str]]]) -> Any:
    """A page of `charts` as TensorBoard's protocol buffer."""
    layout = Layout()
    for title, lines_of_charts in categories.items():
        category = layout.category.add(title=title)
        for chart, lines in lines_of_charts.items():
            category.chart.add(title=chart, multiline=MultilineChartContent(tag=lines))
    content = layout.SerializeToString()
    return _summary(custom_scalars.CONFIG_SUMMARY_TAG, content, custom_scalars.create_summary_metadata())


def _summary(tag: str, content: bytes, metadata: Any) -> Any:
    tensor = TensorProto(dtype="DT_STRING", string_val=[content])
    return Summary(value=[Summary.Value(tag=tag, metadata=metadata, tensor=tensor)])


def _markdown(groups: Sequence[Mapping[str, Any]]) -> str:
    """A table, and below it why, and who is in it: long texts in a column would squeeze the others."""
    rows = group_rows(groups)
    table: list[tuple[str, ...]] = [COLUMNS, ("---",) * len(COLUMNS)]
    for row in rows:
        cells = (
            row.name,
            str(row.tensors),
            count(row.numel),
            percent(row.share),
            row.lr,
            row.weight_decay,
            row.rule,
        )
        table.append(tuple(cell.replace("|", "\\|") for cell in cells))
    lines = [f"| {' | '.join(cells)} |" for cells in table]
    members: list[str] = []
    for row in rows:
        members += [row.name, *(f"    {line}" for line in (*row.why, *row.names))]
    return "\n".join([*lines, "", "```", *members, "```"])
