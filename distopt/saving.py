"""A run's checkpoints: begun beside the training, finished when they are, the old ones removed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch

from distopt.checkpoint import directory
from distopt.checkpoint.writer import Snapshot, Writer
from distopt.comm import World
from distopt.config import Config

logger = logging.getLogger(__name__)


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
        self._config, self._world = config, world
        self._on_saved = on_saved
        self._writer = Writer(asynchronous=config.checkpoint.asynchronous, device=device)
        self._last = time.monotonic()

    @property
    def is_overdue(self) -> bool:
        """Whether more than `every_minutes` have gone by since the last one was begun."""
        minutes = self._config.checkpoint.every_minutes
        return minutes is not None and time.monotonic() - self._last > 60 * minutes

    @property
    def is_written(self) -> bool:
        """Whether what was begun has been written by this rank, and waits for `finish`."""
        return self._writer.pending is not None and self._writer.is_done

    def begin(self, step: int, snapshot: Snapshot, *, must_succeed: bool) -> None:
        """Saves a snapshot, of which it takes a copy; where it must succeed, waits for it."""
        self.finish(must_succeed=must_succeed)
        self.begun, self._last = step, time.monotonic()
        self._writer.begin(directory.step_directory(self._config.work_dir, step), snapshot)
        if must_succeed or not self._config.checkpoint.asynchronous:
            self.finish(must_succeed=must_succeed)

    def finish(self, *, must_succeed: bool) -> None:
        """Waits for the checkpoint that was begun, where there is one.

        Raises:
            OSError: It could not be written, and had to: nothing else would be left of the run. Otherwise a
                full disk is no reason to end the training.
        """
        try:
            path = self._writer.finish()
        except OSError as error:
            if must_succeed:
                raise
            logger.warning("%s; training goes on, and the next checkpoint tries again", error)
            return
        if path is not None:
            if self._world.is_main:
                keep = self._config.checkpoint
                directory.prune(self._config.work_dir, keep.keep_last, keep.keep_every)
            self._on_saved(path)

    def abandon(self) -> Path | None:
        """However training ended, a checkpoint that was begun is worth waiting for."""
        try:
            return self._writer.finish()
        except OSError as error:
            logger.warning("%s", error)
            return None
