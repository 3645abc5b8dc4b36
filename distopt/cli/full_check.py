"""What can be said about a config by building its parts, the model without memory."""

from __future__ import annotations

import torch
from torch import nn

from distopt import parts
from distopt.cli.wording import counted
from distopt.config import Config
from distopt.errors import ConfigError, collecting, raise_all
from distopt.optim import make_plan, try_optimizer
from distopt.schedule import build_schedule


def full_check(config: Config) -> list[str]:
    """Builds the datasets, the model on the meta device, the plan, and a trial of optimizer and schedule.

    Returns:
        Lines that say what was found, warnings included.

    Raises:
        ConfigError: All that is wrong, with the `file:line` of each.
    """
    errors: list[ConfigError] = []
    found: list[str] = []
    with collecting(errors):
        samples = len(parts.train_dataset(config))  # type: ignore[arg-type]
        steps_per_epoch = samples // config.data.batch_size
        max_steps = config.max_steps or (config.max_epochs or 0) * steps_per_epoch
        found.append(
            f"data: {counted(samples, 'sample')}, {counted(steps_per_epoch, 'step')} an epoch,"
            f" {counted(max_steps, 'step')} in all"
        )
    with collecting(errors):
        parts.val_dataset(config)
    with collecting(errors):
        plan = make_plan(_model_without_memory(config), config.optimizer)
        found.append(
            f"optimizer: {counted(len(plan.groups), 'group')}: "
            + ", ".join(group.name for group in plan.groups)
        )
        trial = try_optimizer(plan, config.optimizer)
        if not errors:  # the data has told how long an epoch is
            build_schedule(trial, config.param_scheduler, steps_per_epoch, max_steps)
        found += [*plan.notes, *(f"warning: {warning}" for warning in plan.warnings)]
    raise_all(error.located(config.locate) for error in errors)
    return found


def _model_without_memory(config: Config) -> nn.Module:
    try:
        with torch.device("meta"):
            return parts.model(config)
    except ConfigError as error:
        if error.__cause__ is None:
            raise
    return parts.model(config)  # a constructor that reads its tensors' values needs some
