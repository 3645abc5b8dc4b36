"""A row as TensorBoard scalars, the charts that lay all groups over each other, and the run's texts."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import google_crc32c

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
    """Writes rows to event files.

    Args:
        directory: Of the event files. TensorBoard reads those of earlier starts along with this one's.
        first_step: Optimizer steps done before. Points after it, which the run is about to repeat, are
            purged; at 0 every point.
    """

    def __init__(self, directory: Path, first_step: int) -> None:
        # With tensorflow installed beside it, tensorboard would load it for its file functions: 5 s and a
        # screen of messages. This module, tensorboard's own switch, makes it use its stub.
        sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))
        self._directory = directory
        self._last_step = first_step
        # Every writer purges, a fresh run's too: the slow loader honours no purge if the first has none.
        self._valid_from = first_step + 1 if first_step > 0 else 0
        self._open()

    def _open(self) -> None:
        from tensorboard.summary.writer import record_writer  # type: ignore[import-untyped]
        from torch.utils.tensorboard.writer import SummaryWriter

        # Its own goes through each byte in Python: 0.1 ms for a row of three groups, 7 ms for one of 300,
        # in a thread that the training waits for whenever it needs the interpreter.
        record_writer.masked_crc32c = checksum
        self._writer: Any = SummaryWriter(str(self._directory), purge_step=self._valid_from)
        self._charts_drawn = False

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
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
        from tensorboard.compat.proto.tensor_pb2 import TensorProto  # type: ignore[import-untyped]
        from tensorboard.plugins.text.metadata import create_summary_metadata  # type: ignore[import-untyped]

        # add_text would name it `run/config/text_summary`.
        value = Summary.Value(
            tag=tag,
            metadata=create_summary_metadata(display_name="", description=""),
            tensor=TensorProto(dtype="DT_STRING", string_val=[markdown.encode()]),
        )
        self._writer.file_writer.add_summary(Summary(value=[value]), self._valid_from)

    def log(self, row: Mapping[str, Any]) -> None:
        """One point for every number of `row`, at its step."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        points = dict(scalars(row))
        self._last_step = max(self._last_step, row["step"])  # a checkpoint's row comes later than its step
        if not self._charts_drawn and "loss" in row:
            self._writer.add_custom_scalars(charts(points))
            self._charts_drawn = True
        # One event for all: add_scalar makes one each, and 100 of them (50 groups) hold up the next step.
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in points.items()]
        self._writer.file_writer.add_summary(Summary(value=values), row["step"])

    def flush(self) -> None:
        try:
            self._writer.flush()
        except OSError:
            # After a full disk a writer writes nothing more; a checkpoint was written, so there is space.
            with suppress(OSError):
                self._writer.close()
            self._valid_from = self._last_step + 1
            self._open()

    def close(self) -> None:
        self._writer.close()


def scalars(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Tag and value of every number in a row: `lr/<group>`, `wd/<group>`, `loss/train`, `eval/<metric>`, …"""
    for key, value in row.items():
        if isinstance(value, Mapping):
            section = _SECTIONS.get(key, key)
            yield from ((f"{section}/{name}", item) for name, item in value.items() if item is not None)
        elif isinstance(value, int | float) and key not in ("step", "epoch"):
            yield _SINGLE.get(key, key), value


def checksum(data: bytes) -> int:
    """That of a record in an event file: CRC-32C, rotated, as TFRecord files have it."""
    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def charts(tags: Iterable[str]) -> dict[str, dict[str, list[Any]]]:
    """The Custom Scalars page: both losses in one chart, and each quantity of all groups."""
    optimizer: dict[str, list[Any]] = {}
    for section in _PER_GROUP:
        of_groups = (tag for tag in tags if tag.startswith(f"{section}/") and tag != "grad_norm/all")
        lines = [f"^{re.escape(tag)}$" for tag in of_groups]
        parts = [lines[i : i + _LINES_PER_CHART] for i in range(0, len(lines), _LINES_PER_CHART)]
        for number, part in enumerate(parts, start=1):
            title = section if len(parts) == 1 else f"{section} ({number} of {len(parts)})"
            optimizer[title] = ["Multiline", part]
    return {"loss": {"loss": ["Multiline", ["^loss/train$", r"^eval/(ema\.)?loss$"]]}, "optimizer": optimizer}


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
