"""Model, plan, data: all that needs no other process, so that mistakes are found before one waits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import Dataset

from distopt import flops, parallel, parts
from distopt.callbacks import Callback
from distopt.checkpoint.resume import Start
from distopt.comm import World
from distopt.config import BatchLayout, Config, batch_layout
from distopt.data import EvalLoader, TrainLoader
from distopt.errors import ConfigError
from distopt.objective import Objective
from distopt.optim import Configured, Prebuilt
from distopt.schedule import build_schedule
from distopt.seeding import make_deterministic, seed_everything


class Given(NamedTuple):
    """Parts that stand in place of the config's; None for each that does not."""

    model: nn.Module | None
    optimizer: Optimizer | Callable[[nn.Module], Optimizer] | None
    loss: Callable[[Any, Any], Any] | None
    train_data: Dataset[Any] | None
    val_data: Dataset[Any] | None
    callbacks: Sequence[Callback]


@dataclass(frozen=True)
class Preparation:
    """The parts of a run, before they are wrapped, bound, or have weights that are sharded."""

    layout: BatchLayout
    model: nn.Module
    loss: Callable[[Any, Any], Any] | None
    groups: Configured | Prebuilt
    train_data: Dataset[Any]
    val_data: Dataset[Any] | None
    batches: TrainLoader
    eval_batches: EvalLoader | None
    max_steps: int
    flops_per_sample: float | None
    """Of forward and backward; counted where they can be set against the device's peak."""
    flops_unknown: str | None
    """Why they were to be counted, and are not."""
    metrics: Mapping[str, Any]
    callbacks: dict[str, Callback]

    @property
    def steps_per_epoch(self) -> int | None:
        return self.batches.steps_per_epoch


def prepare(config: Config, given: Given, world: World, device: torch.device, start: Start) -> Preparation:
    """Builds the parts of a run, and tries them as far as one process can.

    Raises:
        ConfigError: What the user got wrong.
    """
    layout = batch_layout(config, world.size)
    if config.deterministic:
        make_deterministic()
    seed_everything(config.seed)
    parallel.set_matmul_precision(config.precision)
    model = parts.model(config, given.model)
    if not model.training:  # as `from_pretrained` leaves it; single modules may be frozen in theirs
        model.train()
    loss = given.loss or parts.loss(config)
    groups = parts.groups(config, model, given.optimizer)
    if not config.strategy.shards:  # else when it is sharded
        seed_everything(config.seed)
        parallel.materialize(model)
    train_data = parts.train_dataset(config, given.train_data)
    val_data = parts.val_dataset(config, given.val_data)
    loading: dict[str, Any] = {
        "rank": world.rank,
        "num_workers": config.data.num_workers,
        "device": device,
        "collate": parts.collate(config),
    }
    batches = TrainLoader(train_data, layout, seed=config.seed, drop_last=config.data.drop_last, **loading)
    eval_batches = None if val_data is None else EvalLoader(val_data, layout, **loading)
    objective = Objective(model, loss)
    first = batches.first_batch()
    objective.check(first)
    counted: float | str | None = None
    if flops.peak(device, config.precision):
        counted = "a stream has no first batch" if first is None else flops.of_batch(model, loss, first)
    if config.eval and eval_batches:
        objective.check(eval_batches.first_batch(), key="data.val")
    max_steps = config.max_steps or (batches.steps_per_epoch or 0) * (config.max_epochs or 0)
    if start.step > max_steps:
        problem = f"{start.checkpoint} is further than that already, at step {start.step}"
        raise ConfigError("max_steps", problem, given=max_steps)
    # A trial of both, without weights or a world: what they refuse is found here.
    build_schedule(groups.trial(), config.param_scheduler, batches.steps_per_epoch, max_steps)
    return Preparation(
        layout,
        model,
        loss,
        groups,
        train_data,
        val_data,
        batches,
        eval_batches,
        max_steps,
        counted / layout.micro_batch_size if isinstance(counted, float) else None,
        counted if isinstance(counted, str) else None,
        parts.metrics(config, device),
        parts.callbacks(config, given.callbacks),
    )
