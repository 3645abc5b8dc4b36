"""The state of a run: what a checkpoint holds of its parts, taken from them and put back into them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distopt import comm, names
from distopt.callbacks import Callbacks
from distopt.checkpoint import directory, state
from distopt.checkpoint.writer import Snapshot
from distopt.config import Config
from distopt.data import TrainLoader
from distopt.ema import Ema
from distopt.errors import listed
from distopt.inheritance import Inheritance
from distopt.optim import Plan
from distopt.schedule import Schedule


@dataclass(frozen=True)
class RunState:
    """The parts of a run that have a state, as trained: wrapped, bound, sharded."""

    config: Config
    plan: Plan
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    schedule: Schedule
    batches: TrainLoader
    callbacks: Callbacks
    loss: nn.Module | None
    """Where it is a module, which may have weights of its own."""
    ema: Ema | None

    def capture(self, step: int, epoch: int, *, evaluated: bool) -> Snapshot:
        """All of it, for a checkpoint after `step`; the tensors are the live ones."""
        places = comm.gather(self.batches.state_dict())
        progress = directory.Progress(step, len(places), places, epoch, evaluated)
        documents = {"config.yaml": self.config.to_yaml(), "plan.json": self.plan.to_json()}
        averages = self.ema.state_dict() if self.ema else {}
        return state.capture(
            self.model, self.optimizer, progress, documents, self._others(), averages=averages
        )

    def restore(self, checkpoint: Path, inheritance: Inheritance) -> tuple[directory.Progress, list[str]]:
        """Takes up a checkpoint, but for what is of `restore_others`.

        Args:
            checkpoint: Its directory.
            inheritance: Settled for this very checkpoint.

        Returns:
            How far the run was, and sentences on what the checkpoint could not give.
        """
        difference = inheritance.difference
        lost = state.load(
            checkpoint,
            self.model,
            self.optimizer,
            leave=difference.stepped_by.keys(),
            renaming=inheritance.renaming,
            strict=self.config.resume_strict,
        )
        progress = directory.read_progress(checkpoint)
        self.batches.load_state_dict(progress.data)
        names.check_ties(self.model, self.plan.ties, after="the resume")
        averages = self._restore_averages(checkpoint, inheritance)
        return progress, [*difference.lost, *lost, *averages]

    def _restore_averages(self, checkpoint: Path, inheritance: Inheritance) -> list[str]:
        if self.ema is None:
            dropped = state.has_averages(checkpoint)
            return ["the averaged weights of the checkpoint are left: there is no `ema` now"] * dropped
        self.ema.restart()  # what the checkpoint has no average of goes on from its weights
        missing = state.load_averages(
            checkpoint, self.ema.averages, self.plan.ties, renaming=inheritance.renaming
        )
        if len(missing) == len(self.ema.averages):
            return ["the checkpoint has no averaged weights: the average starts from its weights"]
        return [f"the average of {listed(missing)} starts from the checkpoint's weights"] * bool(missing)

    def check_others(self) -> None:
        """Raises ConfigError for what a checkpoint could not hold, hours before it would have to."""
        state.check_others(self._others())

    def restore_others(self, checkpoint: Path) -> None:
        """Takes up what is neither the model's nor the optimizer's; the callbacks have started."""
        states = state.load_others(checkpoint, self._others())
        self.callbacks.load_state_dict(states)
        if states.get("scaler"):
            self.scaler.load_state_dict(states["scaler"])
        self.schedule.load_state_dict(states.get("schedule", {}))
        if states.get("ema") and self.ema is not None:
            self.ema.updates = states["ema"]["updates"]
        if states.get("loss") and self.loss is not None:
            self.loss.load_state_dict(states["loss"])

    def _others(self) -> dict[str, dict[str, Any]]:
        return self.callbacks.state_dict() | {
            "scaler": self.scaler.state_dict(),
            "schedule": self.schedule.state_dict(),
            "ema": {} if self.ema is None else {"updates": self.ema.updates},
            "loss": {} if self.loss is None else dict(self.loss.state_dict()),
        }
