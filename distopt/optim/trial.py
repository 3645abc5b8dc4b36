"""Trials of an optimizer, on stand-ins of a few elements: what it refuses is found before training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from distopt.config import OptimizerConfig
from distopt.errors import ConfigError, describe
from distopt.optim.construct import assemble, component_of, construct
from distopt.optim.modes import set_mode
from distopt.optim.plan import Group, Plan


def try_optimizer(plan: Plan, config: OptimizerConfig) -> torch.optim.Optimizer:
    """An optimizer with the groups of `plan` over stand-ins of one element each: a trial of its arguments.

    Raises:
        ConfigError: The optimizer's class refuses its arguments, the options of a group, or a number of
            dimensions.
    """
    stand_ins = {
        group.name: [torch.zeros([1] * dims) for dims in sorted({len(e.shape) for e in group.entries})]
        for group in plan.groups
    }
    for part in dict.fromkeys(group.part for group in plan.groups):
        largest = max((stand_ins[g.name][-1] for g in plan.groups if g.part == part), key=torch.Tensor.dim)
        construct(config, part, [largest])  # what it refuses of the section, no group is to blame for
    for group in plan.groups:
        # As arguments, for the class checks only those: what stands in a group it takes as it is.
        construct(config, group.part, stand_ins[group.name], tried=group)
    groups = [{"params": stand_ins[g.name], "name": g.name, **g.options} for g in plan.groups]
    return assemble(config, plan, groups)


def try_sharded(plan: Plan, config: OptimizerConfig, optimizer: torch.optim.Optimizer) -> None:
    """Takes a step of the same optimizer over sharded stand-ins, where its parameters are sharded.

    Every rank calls it: the step of a matrix optimizer is collective.

    Raises:
        ConfigError: The optimizer cannot step DTensors.
    """
    first = next(iter(optimizer.param_groups[0]["params"]))
    if not isinstance(first, DTensor):
        return
    mesh, placements = first.device_mesh, first.placements

    def stand_ins(group: Group) -> list[nn.Parameter]:
        dims = sorted({len(entry.shape) for entry in group.entries if entry.shape})
        local = [torch.ones([2] * n, device=first.device) for n in dims]
        params = [nn.Parameter(DTensor.from_local(one, mesh, placements)) for one in local]
        for param in params:
            param.grad = torch.ones_like(param)
        return params

    for part in dict.fromkeys(group.part for group in plan.groups):
        try:
            trial = construct(config, part, _param_groups(plan, stand_ins, part))
            set_mode(trial, "train")
            trial.step()
        except ConfigError:
            raise
        except Exception as error:
            key, component = component_of(config, part)
            raise ConfigError(
                f"{key}.type",
                f"cannot step sharded parameters: {describe(error)}",
                given=component.type,
                allowed="strategy: ddp; or another optimizer",
            ) from error


def _param_groups(
    plan: Plan, params: Callable[[Group], Sequence[torch.Tensor]], part: str | None
) -> list[dict[str, Any]]:
    return [
        {"params": params(group), "name": group.name, **group.options}
        for group in plan.groups
        if group.part == part
    ]
