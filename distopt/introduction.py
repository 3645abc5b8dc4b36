"""What a run says of itself before it begins."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from distopt import comm, names
from distopt.config import Config, shard_size
from distopt.data import length
from distopt.ema import lint
from distopt.monitor import environment
from distopt.saving import late_for_torchrun
from distopt.schedule import build_schedule, overview

if TYPE_CHECKING:
    from distopt.runner import Runner

logger = logging.getLogger(__name__)


def introduce(runner: Runner) -> list[str]:
    """Prints the header, the groups and what is to be noted, and records what only few look up.

    Returns:
        The host of each rank.
    """
    plan, start = runner.plan, runner.start
    runner.console.header(_facts(runner))
    runner.console.groups(plan.to_dict()["groups"])
    changed = [f"changed since the last start: {difference}" for difference in start.differences]
    for warning in (
        *plan.warnings,
        *runner.schedule.warnings,
        *lint(runner.config.ema, runner.max_steps),
        *start.skipped,
        *changed,
        *runner.inheritance.values,
        *runner.lost,
    ):
        logger.warning(warning)
    for place in runner.habits.graph_breaks:
        logger.warning("torch.compile breaks the graph, which costs speed, at %s", place)
    if late := late_for_torchrun(start.save_seconds):
        logger.warning(late)
    if why := runner.prepared.flops_unknown:
        logger.info("mfu is not known: %s", why)
    ranks = comm.gather(environment.this_rank(runner.device))
    if runner.world.is_main:
        runner.recording.describe(environment.environment(ranks), _schedule(runner))
    return [rank["host"] for rank in ranks]


def _schedule(runner: Runner) -> str:
    """What it will do, tried on a copy of the groups."""
    groups = [_copied(group) for group in runner.optimizer.param_groups]
    trial = torch.optim.Optimizer(groups, runner.optimizer.defaults)
    entries, last = runner.config.param_scheduler, runner.max_steps
    return overview(build_schedule(trial, entries, runner.prepared.steps_per_epoch, last), trial, last)


def _copied(group: Mapping[str, Any]) -> dict[str, Any]:
    """A group without its parameters. Tensors are filled in place; what else there is may be no value."""
    options = {k: deepcopy(v) if isinstance(v, torch.Tensor | tuple) else v for k, v in group.items()}
    return {**options, "params": [torch.empty(0)]}


def _facts(runner: Runner) -> Mapping[str, str]:
    """What will be trained, how and where."""
    config, layout, world = runner.config, runner.prepared.layout, runner.world
    launched = "" if world.launched else " (started without torchrun)"
    backend = "nccl" if runner.device.type == "cuda" else "gloo"
    samples = length(runner.prepared.train_data)
    epochs = (
        f" ({runner.max_steps / runner.prepared.steps_per_epoch:.3g} epochs)"
        if runner.prepared.steps_per_epoch
        else ""
    )
    checkpoint = runner.start.checkpoint
    return {
        "model": f"{names.module_type(runner.model).__name__}, {_parameters(runner.model)}",
        "data": f"{config.data.train.type}, " + (f"{samples:,} samples" if samples else "a stream"),
        "world": f"{world.size} × {runner.device.type} ({backend}){launched}",
        "strategy": ", ".join(_strategy(config, world.size)),
        "batch": f"{layout.batch_size} = {layout.world} (ranks) ×"
        f" {layout.micro_batch_size} (per forward) × {layout.accumulation} (accumulated)",
        "steps": f"{runner.max_steps:,}{epochs}",
        "work_dir": str(config.work_dir),
        "start": f"step {runner.step}, from {checkpoint.name}" if checkpoint else "afresh",
    }


def _strategy(config: Config, world: int) -> Iterator[str]:
    size = shard_size(config.strategy, world)
    yield f"hsdp {world // size} × {size}" if config.strategy.type == "hsdp" else config.strategy.type
    yield config.precision
    if config.activation_checkpointing:
        yield "activations computed anew"
    if config.compile:
        yield f"compiled by {config.compile.backend}"


def _parameters(model: nn.Module) -> str:
    parameters = {id(p): p for p in model.parameters()}.values()
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    return f"{sum(p.numel() for p in parameters):,} parameters, {trainable:,} trainable"
