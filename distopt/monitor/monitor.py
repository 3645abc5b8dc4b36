"""Where the loop's rows go: metrics.jsonl, TensorBoard and the progress line, on rank 0."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from distopt.monitor.console import Console

if TYPE_CHECKING:
    from distopt.monitor.tensorboard import TensorBoard

logger = logging.getLogger(__name__)


class Sink(Protocol):
    """Something that takes rows."""

    def log(self, row: Mapping[str, Any]) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


class Monitor:
    """Gives every row to all that record or show rows. On ranks other than 0 there are none.

    Once it trains, a file that cannot be written (a full disk) is reported once and stops nothing.

    Args:
        work_dir: The run directory.
        console: From `open_console`.
        rank: Global rank.
        first_step: Optimizer steps done before; 0 on a fresh run. What an earlier start recorded after
            that step is dropped, since the run is about to repeat it.
        last_step: Where the run ends.
        groups: `plan.to_dict()["groups"]`.
        config: The resolved config as YAML.
        baselines: Losses to compare the evaluation's with.
    """

    def __init__(
        self,
        work_dir: Path,
        console: Console,
        *,
        rank: int,
        first_step: int,
        last_step: int,
        groups: Sequence[Mapping[str, Any]],
        config: str,
        baselines: Mapping[str, float] | None = None,
    ) -> None:
        self._sinks: dict[str, Sink] = {}
        self._failing: set[str] = set()
        self._tensorboard: TensorBoard | None = None
        if rank == 0:
            from distopt.monitor.jsonl import JsonLines
            from distopt.monitor.tensorboard import TensorBoard

            self._tensorboard = TensorBoard(work_dir / "tensorboard", first_step)
            self._tensorboard.describe(config, groups)
            self._sinks = {
                "the console": console.progress(last_step, groups, baselines or {}),
                "metrics.jsonl": JsonLines(work_dir / "metrics.jsonl", first_step),
                "tensorboard": self._tensorboard,
            }

    def log(self, row: Mapping[str, Any]) -> None:
        """Records and shows a row of training or of evaluation, as docs/monitoring.md describes them."""
        self._tell_all(lambda sink: sink.log(row))

    def describe(self, texts: Mapping[str, str]) -> None:
        """Texts of the run for TensorBoard: tag → Markdown."""
        if self._tensorboard:
            for tag, markdown in texts.items():
                self._tensorboard.text(tag, markdown)

    def flush(self) -> None:
        """Puts on disk what was logged so far; called with each checkpoint."""
        self._tell_all(lambda sink: sink.flush())

    def close(self) -> None:
        self._tell_all(lambda sink: sink.close())

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tell_all(self, action: Callable[[Sink], None]) -> None:
        for name, sink in self._sinks.items():
            try:
                action(sink)
            except OSError as error:
                if name not in self._failing:
                    logger.warning("%s cannot be written, training goes on: %s", name, error)
                self._failing.add(name)
