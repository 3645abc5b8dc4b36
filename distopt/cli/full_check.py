"""What can be said about a config by building its parts, the model without memory."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from distopt import parallel, parts
from distopt.callbacks import Callback, EarlyStop
from distopt.cli.data import run_length, train_batches, val_batches
from distopt.cli.model import model_without_memory
from distopt.cli.wording import counted
from distopt.config import Config
from distopt.data import length
from distopt.ema import lint
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
    val_data = None
    with collecting(errors):
        val_data = parts.val_dataset(config)
    with collecting(errors):
        parts.metrics(config, torch.device("cpu"))
    with collecting(errors):
        found += _unknown_metrics(config, parts.callbacks(config))
    with collecting(errors):
        model, loss = model_without_memory(config), parts.loss(config)
        objective = Objective(model, loss)
        objective.check(batch)
        if config.eval and val_data is not None and not errors:
            objective.check(val_batches(config, val_data).first_batch(), key="data.val")
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
            doubts = (*schedule.warnings, *lint(config.ema, max_steps))
            found += [f"warning: {warning}" for warning in doubts]
        found += [f"warning: {warning}" for warning in plan.warnings]
        parallel.try_wrap(
            model,
            config.strategy,
            checkpointing=config.activation_checkpointing,
            compilation=config.compile,
        )
    raise_all(error.located(config.locate) for error in errors)
    return found


def _unknown_metrics(config: Config, callbacks: Mapping[str, Callback]) -> list[str]:
    """A warning for each metric of an `EarlyStop` that only the model could return.

    Raises:
        ConfigError: There is no evaluation.
    """
    known = ["loss", *(config.eval.metrics if config.eval else ())]
    if config.ema and config.ema.evaluate:
        known += [f"ema.{name}" for name in known]
    warnings = []
    for key, callback in callbacks.items():
        if not isinstance(callback, EarlyStop):
            continue
        if not config.eval:
            try:
                callback.check_metrics({})
            except ConfigError as error:
                raise error.under(key) from None
        if callback.metric not in known:
            problem = f"metric {callback.metric!r} is not among {', '.join(known)}"
            warnings.append(f"warning: {key}: {problem}; it has to be returned by the model")
    return warnings


def _describe_data(samples: int | None, steps_per_epoch: int | None, max_steps: int) -> str:
    in_all = f"{counted(max_steps, 'step')} in all"
    if samples is None or steps_per_epoch is None:
        return f"data: a stream, {in_all}"
    return f"data: {counted(samples, 'sample')}, {counted(steps_per_epoch, 'step')} an epoch, {in_all}"
