"""A run on record: its directory, what the console says of it, and the status that launchers read."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from distopt.comm import World
from distopt.config import Config
from distopt.errors import ConfigError, PeerError, in_one_line
from distopt.files import replace_text
from distopt.monitor import Console, Monitor, Session, StatusFile, environment, flattened, rank_log
from distopt.optim import Plan

_NO_HPARAMS = {
    "work_dir",
    "resume",
    "resume_groups",
    "resume_strict",
    "resume_rename",
    "max_time",
    "hang_timeout",
    "checkpoint",
    "log",
    "profile",
}
"""Where and how a run is kept: the config's keys that change nothing about what is trained."""


class Recording(AbstractContextManager["Recording"]):
    """Opens the run directory for writing and closes it, saying how the run ended.

    Rank 0 writes what belongs to the run; every rank has a log of its own.

    Args:
        config: Of the run.
        plan: Of the run.
        world: This process.
        console: From `open_console`.
        step: Optimizer steps done before.
        last_step: Where the run ends.
        baselines: Losses to compare the evaluation's with.
        checkpoint: Which this start continues from.
    """

    def __init__(
        self,
        config: Config,
        plan: Plan,
        world: World,
        console: Console,
        *,
        step: int,
        last_step: int,
        baselines: Mapping[str, float],
        checkpoint: Path | None,
    ) -> None:
        self._config, self._plan, self._world, self._console = config, plan, world, console
        self._step, self._last_step = step, last_step
        self._baselines = baselines
        self._checkpoint = checkpoint
        self._began = time.monotonic()
        self._newest: dict[str, Any] = {}
        self._stopped: str | None = None
        self._preempted = False
        self._status: StatusFile | None = None
        self._session: Session | None = None

    def __enter__(self) -> Recording:
        config, work_dir = self._config, self._config.work_dir
        groups = self._plan.to_dict()["groups"]
        with ExitStack() as stack:
            stack.enter_context(rank_log(work_dir / "logs", self._world.rank, self._console))
            if self._world.is_main:
                replace_text(work_dir / "config.yaml", config.to_yaml())
                replace_text(work_dir / "plan.json", self._plan.to_json())
                self._status = stack.enter_context(
                    StatusFile(
                        work_dir / "status.json",
                        self._step,
                        self._relative(self._checkpoint),
                        last_step=self._last_step,
                    )
                )
                self._session = Session(work_dir / "tensorboard", _hparams(config))
            self._monitor = stack.enter_context(
                Monitor(
                    work_dir,
                    self._console,
                    rank=self._world.rank,
                    first_step=self._step,
                    last_step=self._last_step,
                    groups=groups,
                    config=config.to_yaml(),
                    baselines=self._baselines,
                )
            )
            self._open = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status and error is None:
            self._status.update(state="preempted" if self._preempted else "done", reason=self._stopped)
        elif (
            self._status
            and self._world.size > 1
            and isinstance(error, Exception)
            and not isinstance(error, ConfigError | PeerError)  # which name their rank where it matters
        ):
            self._status.update(state="failed", reason=f"rank 0: {in_one_line(error)}")
        if self._session and (error or not self._preempted):
            self._session.end(succeeded=error is None)
        self._open.__exit__(kind, error, trace)
        if error is None:
            self._console.summary(
                self._config.work_dir,
                step=self._step,
                seconds=time.monotonic() - self._began,
                loss=self._newest.get("loss"),
                evaluation=self._newest.get("eval", {}),
                baselines=self._baselines,
                best=self._newest.get("best", {}),
                checkpoint=self._relative(self._checkpoint),
                outcome="finished" if self._stopped is None else "stopped",
                reason=self._stopped and self._stopped + self._preempted * "; the same command continues",
            )

    def describe(self, surroundings: Mapping[str, Any], schedule: str) -> None:
        """Records what the run trains in, from `environment`, and what its schedule will do, as Markdown."""
        replace_text(self._config.work_dir / "environment.json", json.dumps(surroundings, indent=2) + "\n")
        texts = {"run/environment": environment.markdown(surroundings), "run/schedule": schedule}
        self._monitor.describe(texts)

    def stopped(self, reason: str) -> None:
        """Records that the run ends before its last step, as it was asked to."""
        self._stopped = reason

    def preempted(self, reason: str) -> None:
        """Records that this start ends before the run's last step, which the next one is to go on to."""
        self._stopped, self._preempted = reason, True

    def log(self, row: Mapping[str, Any]) -> None:
        """Records a row of training or evaluation."""
        self._step = row["step"]
        self._newest |= row
        if self._status:
            self._status.update(step=self._step)
        self._monitor.log(row)

    def saved(self, checkpoint: Path, row: Mapping[str, Any]) -> None:
        """Records that `checkpoint` is committed, and its row, whose step may be some steps ago."""
        self._checkpoint = checkpoint
        self._monitor.flush()
        if self._status:
            relative, seconds = self._relative(checkpoint), round(row["checkpoint"]["seconds"], 3)
            self._status.update(step=self._step, checkpoint=relative, save_seconds=seconds)
        self._monitor.log(row)

    def _relative(self, checkpoint: Path | None) -> str | None:
        """The checkpoint as the run directory knows it; one from elsewhere by its whole path."""
        work_dir = self._config.work_dir
        if checkpoint is None:
            return None
        return str(checkpoint.relative_to(work_dir) if checkpoint.is_relative_to(work_dir) else checkpoint)


def _hparams(config: Config) -> dict[str, bool | float | str]:
    """What decides about the result, of all that the config says."""
    said = {key: value for key, value in config.to_dict().items() if key not in _NO_HPARAMS}
    return dict(flattened(said))
