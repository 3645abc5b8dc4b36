"""What can be said about a config by building its parts, the model without memory."""

from __future__ import annotations

from functools import partial

import torch

from distopt import parts
from distopt.cli.data import run_length, train_batches
from distopt.cli.model import model_without_memory
from distopt.cli.wording import counted
from distopt.config import Config
from distopt.data import length
from distopt.errors import ConfigError, collecting, raise_all
from distopt.objective import Objective
from distopt.optim import make_plan, try_optimizer
from distopt.schedule import build_schedule


def full_check(config: Config) -> list[str]:
    """Builds all that the config names, the model on the meta device, and holds the parts against each other.

    Returns:
        Lines that say what was found, warnings included.

    Raises:
        ConfigError: All that is wrong, with the `file:line` of each.
    """
    errors: list[ConfigError] = []
    found: list[str] = []
    batch = None
    with collecting(errors):
        train_data = parts.train_dataset(config)
        batches = train_batches(config, train_data)
        steps_per_epoch = batches.steps_per_epoch
        max_steps = run_length(config, steps_per_epoch)
        found.append(_describe_data(length(train_data), steps_per_epoch, max_steps))
        batch = batches.first_batch()
    for build in (parts.val_dataset, parts.callbacks, partial(parts.metrics, device=torch.device("cpu"))):
        with collecting(errors):
            build(config)
    with collecting(errors):
        model, loss = model_without_memory(config), parts.loss(config)
        if batch is not None:
            Objective(model, loss).check(batch)
        plan = make_plan(model, config.optimizer)
        found.append(
            f"optimizer: {counted(len(plan.groups), 'group')}: "
            + ", ".join(group.name for group in plan.groups)
        )
        trial = try_optimizer(plan, config.optimizer)
        if not errors:  # the data has told how long an epoch is
            schedule = build_schedule(trial, config.param_scheduler, steps_per_epoch, max_steps)
            if not config.eval:
                schedule.check_metrics({})
            found += [f"warning: {warning}" for warning in schedule.warnings]
        found += [f"warning: {warning}" for warning in plan.warnings]
    raise_all(error.located(config.locate) for error in errors)
    return found


def _describe_data(samples: int | None, steps_per_epoch: int | None, max_steps: int) -> str:
    in_all = f"{counted(max_steps, 'step')} in all"
    if samples is None or steps_per_epoch is None:
        return f"data: a stream, {in_all}"
    return f"data: {counted(samples, 'sample')}, {counted(steps_per_epoch, 'step')} an epoch, {in_all}"
