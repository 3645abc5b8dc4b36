"""status.json: what state the run is in, for launchers and people."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from distopt.errors import in_one_line
from distopt.files import replace_text

State = Literal["running", "done", "preempted", "failed"]

logger = logging.getLogger(__name__)


class StatusFile:
    """Keeps status.json up to date while the run lives. Rank 0 alone has one.

    A change of state or checkpoint is written at once, the step with the heartbeat: `update` in the loop
    costs an assignment. A write that fails is reported once and never stops the training. As a context
    manager it says `failed`, with the reason, when an exception passes.

    Args:
        path: The file; always whole, because it is replaced and never written in place.
        step: Optimizer steps done.
        checkpoint: The newest committed checkpoint, relative to the run directory; None where there is none.
        last_step: Where the run ends.
        heartbeat: Seconds between two writes, at most.
    """

    def __init__(
        self,
        path: Path,
        step: int,
        checkpoint: str | None = None,
        *,
        last_step: int | None = None,
        heartbeat: float = 15.0,
    ) -> None:
        self._path = path
        self._fields = _running(step, checkpoint, last_step)
        self._lock = threading.Lock()
        self._warned = False
        self._closing = threading.Event()
        self._write()
        self._thread = threading.Thread(target=self._beat, args=(heartbeat,), name="status", daemon=True)
        self._thread.start()

    def update(
        self,
        *,
        step: int | None = None,
        state: State | None = None,
        checkpoint: str | None = None,
        reason: str | None = None,
        save_seconds: float | None = None,
    ) -> None:
        """Sets what is given; the rest stays."""
        given = {
            "step": step,
            "state": state,
            "checkpoint": checkpoint,
            "reason": reason,
            "save_seconds": save_seconds,
        }
        changes = {field: value for field, value in given.items() if value is not None}
        before = self._fields["state"], self._fields["checkpoint"]
        self._fields |= changes
        if before != (self._fields["state"], self._fields["checkpoint"]):
            self._write()

    def close(self) -> None:
        """Writes the last word and ends the heartbeat."""
        self._closing.set()
        self._thread.join()
        self._write()

    def __enter__(self) -> StatusFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._fields["state"] == "running":
            self.update(state="failed", reason=in_one_line(error))
        self.close()

    def _beat(self, seconds: float) -> None:
        while not self._closing.wait(seconds):
            self._write()

    def _write(self) -> None:
        with self._lock:
            try:
                _replace(self._path, self._fields)
            except OSError as error:
                if not self._warned:
                    logger.warning("%s cannot be written, training goes on: %s", self._path, error)
                self._warned = True


def record_failure(path: Path, reason: str) -> None:
    """Says `failed` for a run whose rank 0 cannot: it hangs, and is about to be ended."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        now = _running(0, None, None)
        failed = {"state": "failed", "reason": reason, "launch": now["launch"]}
        _replace(path, now | (read_status(path) or {}) | failed)


def read_status(path: Path) -> dict[str, Any] | None:
    """What status.json says; None where there is none, or none that can be read."""
    try:
        status = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return status if isinstance(status, dict) else None


def _running(step: int, checkpoint: str | None, last_step: int | None) -> dict[str, Any]:
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    return {
        "state": "running",
        "step": step,
        "last_step": last_step,
        "checkpoint": checkpoint,
        "reason": None,
        "launch": os.environ.get("TORCHELASTIC_RUN_ID"),
        "restarts": restarts,
        "restarts_left": max(0, int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) - restarts),
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }


def _replace(path: Path, fields: Mapping[str, Any]) -> None:
    status = {**fields, "updated": datetime.now(UTC).isoformat(timespec="seconds")}
    replace_text(path, json.dumps(status, indent=2) + "\n")
