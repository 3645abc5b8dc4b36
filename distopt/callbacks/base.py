"""The hooks of a run, and what they see of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from distopt.comm import World
from distopt.config import Config


class Run(Protocol):
    """What a callback sees of the run that it is part of."""

    config: Config
    world: World
    """This process among all."""
    device: torch.device
    model: nn.Module
    """The author's model, not its DDP wrapper; under fsdp its parameters are DTensors."""
    optimizer: torch.optim.Optimizer
    step: int
    """Optimizer steps done."""
    max_steps: int
    metrics: Mapping[str, bool | None]
    """What an evaluation yields: name → whether higher is better, None where that is not known."""

    def stop(self, reason: str) -> None:
        """Ends the run, with an evaluation and a checkpoint, at the next logged step or evaluation.

        One rank's request is enough: they are compared there, so that all end at the same step.
        """
        ...


class Callback:
    """Derive from it and define what is needed: hooks are called on every rank, at the same steps.

    A hook that runs a collective must do so on all ranks; one that writes files, on `run.world.is_main`.
    """

    def on_start(self, run: Run) -> None:
        """Before the first step of this start; weights are there, those of a checkpoint too."""

    def on_step(self, run: Run) -> None:
        """After each optimizer step. What it does is done at every step: it must not wait for the device."""

    def on_log(self, run: Run, row: dict[str, Any]) -> None:
        """At each logged step, before its row is written: what is put into `row` is recorded with it.

        A mapping of numbers `row["mine"] = {"x": 1.0}` becomes the TensorBoard tag `mine/x`.
        """

    def on_eval(self, run: Run, row: dict[str, Any]) -> None:
        """After each evaluation, before its row is written; `row["eval"]` holds its values by name."""

    def on_save(self, run: Run, checkpoint: Path) -> None:
        """After a checkpoint is complete."""

    def on_end(self, run: Run) -> None:
        """After the last step, evaluation and checkpoint of a run that was not broken off."""

    def state_dict(self) -> dict[str, Any]:
        """What goes into checkpoints: plain data and tensors, in mappings with text keys."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave; called after `on_start`, only where a checkpoint has it."""
