"""A run's checkpoints: begun beside the training, finished when they are, the old ones removed."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from distopt.checkpoint import directory
from distopt.checkpoint.writer import Snapshot, Writer
from distopt.comm import World
from distopt.config import Config

logger = logging.getLogger(__name__)

_SHUTDOWN_TIMEOUTS = ("PET_SHUTDOWN_TIMEOUT", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT")
"""What torchrun's --shutdown-timeout can also be said by."""


def late_for_torchrun(seconds: float) -> str | None:
    """A sentence, where torchrun kills ranks before they have written a checkpoint that takes so long."""
    found = (float(os.environ[name]) for name in _SHUTDOWN_TIMEOUTS if os.environ.get(name))
    timeout = next(found, 30.0)
    if "TORCHELASTIC_RUN_ID" not in os.environ or seconds < timeout:
        return None
    return (
        f"a checkpoint took {seconds:.0f} s to be written, and torchrun kills ranks that are stopped after"
        f" {timeout:.0f} s: export {_SHUTDOWN_TIMEOUTS[0]}={2 * seconds:.0f} for it"
    )


class Saver:
    """Every rank has one, and calls the same at the same steps.

    Args:
        config: Of the run.
        world: This process.
        device: This rank's own.
        on_saved: Told of each checkpoint that is complete.
    """

    def __init__(
        self, config: Config, world: World, device: torch.device, on_saved: Callable[[Path], None]
    ) -> None:
        self.begun: int | None = None
        """The step whose checkpoint was begun last."""
        self._epoch = 0
        self._held = 0.0  # seconds
        self._config, self._world = config, world
        self._on_saved = on_saved
        self._writer = Writer(asynchronous=config.checkpoint.asynchronous, device=device)
        self._last = time.monotonic()
        self._is_best = False
        self._told_late = False

    @property
    def is_overdue(self) -> bool:
        """Whether more than `every_minutes` have gone by since the last one was begun."""
        minutes = self._config.checkpoint.every_minutes
        return minutes is not None and time.monotonic() - self._last > 60 * minutes

    @property
    def row(self) -> dict[str, Any]:
        """What is recorded of the last one: seconds that it took to be written, and that training waited."""
        times = {"seconds": self._writer.seconds, "held": self._held}
        return {"step": self.begun, "epoch": self._epoch, "checkpoint": times}

    @property
    def is_written(self) -> bool:
        """Whether what was begun has been written by this rank, and waits for `finish`."""
        return self._writer.pending is not None and self._writer.is_done

    def begin(self, step: int, epoch: int, snapshot: Snapshot, *, is_best: bool, must_succeed: bool) -> None:
        """Saves a snapshot, of which it takes a copy; where it must succeed, waits for it."""
        self.finish(must_succeed=must_succeed)
        self.begun, self._epoch, self._is_best = step, epoch, is_best
        self._last = time.monotonic()
        self._writer.begin(directory.step_directory(self._config.work_dir, step), snapshot)
        self._held = time.monotonic() - self._last
        if must_succeed or not self._config.checkpoint.asynchronous:
            self.finish(must_succeed=must_succeed)

    def finish(self, *, must_succeed: bool) -> None:
        """Waits for the checkpoint that was begun, where there is one.

        Raises:
            OSError: It could not be written, and had to: nothing else would be left of the run. Otherwise a
                full disk is no reason to end the training.
        """
        try:
            began = time.monotonic()
            path = self._writer.finish()
            self._held += time.monotonic() - began
        except OSError as error:
            if must_succeed:
                raise
            logger.warning("%s; training goes on, and the next checkpoint tries again", error)
            return
        if path is not None:
            self._settle(path)
            self._on_saved(path)
            late = None if self._told_late else late_for_torchrun(self._writer.seconds)
            if late:
                logger.warning(late)
                self._told_late = True

    def abandon(self) -> Path | None:
        """However training ended, a checkpoint that was begun is worth waiting for."""
        try:
            path = self._writer.finish()
        except OSError as error:
            logger.warning("%s", error)
            return None
        if path is not None:
            self._settle(path)
        return path

    def _settle(self, path: Path) -> None:
        """Gives a complete checkpoint its place among the others."""
        if self._world.is_main:
            if self._is_best:
                directory.mark_best(path)
            keep = self._config.checkpoint
            directory.prune(self._config.work_dir, keep.keep_last, keep.keep_every)
