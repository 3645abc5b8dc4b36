"""A run as its directory tells of it: what state it is in, how far it is, and whether it still lives.

Nothing here writes, or loads torch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from distopt.checkpoint import directory as checkpoints
from distopt.monitor.groups import largest_group
from distopt.monitor.rows import newest_rows
from distopt.monitor.status import read_status

State = Literal["missing", "running", "lost", "done", "preempted", "failed"]

PATIENCE = 60.0
"""Seconds without a heartbeat, which comes every 15, after which a run is taken for lost."""


@dataclass(frozen=True)
class RunView:
    """A run at one moment."""

    run: str
    """Its directory."""
    state: State = "missing"
    """As in status.json; or `lost`: said to be running, and silent; or `missing`: no run there (yet)."""
    step: int = 0
    """Optimizer steps done."""
    last_step: int | None = None
    """Where the run ends."""
    reason: str | None = None
    restarts: int = 0
    restarts_left: int = 0
    """How often torchrun will start the ranks again yet, where they fail."""
    host: str | None = None
    pid: int | None = None
    seen: float | None = None
    """Seconds since its last heartbeat, or its end."""
    checkpoint: str | None = None
    """The newest complete one."""
    checkpoint_age: float | None = None
    """Seconds."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """The newest training row; empty before the first."""
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    """The newest evaluation row; empty before the first."""

    @property
    def has_ended(self) -> bool:
        """Whether this start of the run says that it is over. A lost one may yet be restarted."""
        if self.state == "failed" and self.restarts_left and (self.seen or 0.0) <= PATIENCE:
            return False
        return self.state in ("done", "preempted", "failed")

    @property
    def eta(self) -> float | None:
        """Seconds that the steps left take; None where that is not known, or nobody takes them."""
        step_time = self.training.get("perf", {}).get("step_time")
        if self.state != "running" or self.last_step is None or step_time is None:
            return None
        return float((self.last_step - self.step) * step_time)

    def to_dict(self) -> dict[str, Any]:
        """All there is, in plain data."""
        return {**asdict(self), "eta": self.eta}


class Watch:
    """Looks at one run, again and again.

    Clocks of two machines may differ. What has been seen to change since the watch began is alive, whatever
    the clocks say; before that, they are all there is to go by.

    Args:
        directory: Of the run; need not exist yet.
        clock: Seconds since the epoch.
    """

    def __init__(self, directory: Path, clock: Callable[[], float] = time.time) -> None:
        self.directory = directory
        self._clock = clock
        self._updated: str | None = None
        self._changed_at: float | None = None

    def look(self) -> RunView:
        """The run as it is now."""
        status = read_status(self.directory / "status.json")  # before the rows: at its end all are there
        if status is None or not isinstance(status.get("state"), str):
            return RunView(str(self.directory))
        training, evaluation = newest_rows(self.directory / "metrics.jsonl")
        checkpoint, age = self._checkpoint(status)
        seen = self._seen(str(status.get("updated")))
        is_lost = status["state"] == "running" and seen is not None and seen > PATIENCE
        return RunView(
            run=str(self.directory),
            state="lost" if is_lost else status["state"],
            step=max(status.get("step", 0), training.get("step", 0)),
            last_step=status.get("last_step"),
            reason=status.get("reason"),
            restarts=status.get("restarts", 0),
            restarts_left=status.get("restarts_left", 0),
            host=status.get("host"),
            pid=status.get("pid"),
            seen=seen,
            checkpoint=checkpoint,
            checkpoint_age=age,
            training=training,
            evaluation=evaluation,
        )

    def largest_group(self) -> str:
        """The name of the group with the most parameters; empty where no plan is there."""
        try:
            plan = json.loads((self.directory / "plan.json").read_text(encoding="utf-8"))
            return largest_group(plan["groups"])
        except (OSError, ValueError, KeyError):
            return ""

    def _seen(self, updated: str) -> float | None:
        now = self._clock()
        if self._updated not in (None, updated):
            self._changed_at = now
        self._updated = updated
        if self._changed_at is not None:
            return now - self._changed_at
        try:
            return max(0.0, now - datetime.fromisoformat(updated).timestamp())
        except ValueError:
            return None

    def _checkpoint(self, status: Mapping[str, Any]) -> tuple[str | None, float | None]:
        """The newest one's name and age; of a run that has none, the one elsewhere that it began from."""
        newest = checkpoints.newest(self.directory)
        if newest is None:
            return status.get("checkpoint"), None
        try:
            return newest.name, max(0.0, self._clock() - newest.stat().st_mtime)
        except OSError:  # it has just been removed, for a newer one
            return newest.name, None
