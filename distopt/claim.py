"""One start at a time writes into a run directory, even where the one before left processes behind."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import time
from pathlib import Path
from types import TracebackType

from distopt.checkpoint import directory
from distopt.errors import ConfigError

PATIENCE = 30.0
"""Seconds in which a start that was killed has to be gone: freeing the memory of GPUs takes some."""

logger = logging.getLogger(__name__)


class Claim:
    """A lock on a run directory: rank 0 takes it before the run's first write, and holds it to the end.

    It goes with the process, however that ends, and is not inherited by workers of a loader. Where the file
    system knows no locks, there is none. Make it before looking for the checkpoint to start from.
    """

    def __init__(self, work_dir: Path) -> None:
        self._work_dir = work_dir
        self._seen = directory.committed(work_dir)
        self._file: int | None = None

    def take(self) -> None:
        """Waits for the start before to end, where that is about to.

        Raises:
            ConfigError: It goes on, or has saved checkpoints since this one looked for them.
        """
        self._work_dir.mkdir(parents=True, exist_ok=True)
        try:
            self._file = os.open(self._work_dir / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
            self._lock()
        except OSError as error:
            logger.info("%s cannot be locked: %s", self._work_dir, error)
        if directory.committed(self._work_dir) != self._seen:
            raise self._refusal("another start has saved checkpoints in it meanwhile")

    def _lock(self) -> None:
        assert self._file is not None
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):  # as systems differ in saying that it is held
                if time.monotonic() > deadline:
                    raise self._refusal(f"another start is writing to it: {self._holder()}") from None
                time.sleep(0.1)
            else:
                os.ftruncate(self._file, 0)
                os.pwrite(self._file, json.dumps([socket.gethostname(), os.getpid()]).encode(), 0)
                return

    def _holder(self) -> str:
        assert self._file is not None
        try:
            host, pid = json.loads(os.pread(self._file, 1000, 0))
        except ValueError:
            return "process unknown"
        return f"process {pid} on {host}"

    def _refusal(self, problem: str) -> ConfigError:
        allowed = "one start at a time, or another work_dir"
        return ConfigError("work_dir", problem, given=str(self._work_dir), allowed=allowed)

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
