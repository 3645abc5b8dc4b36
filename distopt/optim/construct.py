"""Param groups → the optimizer that the section names, or several that behave as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from distopt import registry
from distopt.config import Component, OptimizerConfig
from distopt.errors import ConfigError
from distopt.optim.arguments import defaults_of, with_fused
from distopt.optim.composite import CompositeOptimizer
from distopt.optim.local_shards import step_local_shards
from distopt.optim.plan import Group, Plan
from distopt.optim.rules import CUSTOM_KEYS


def assemble(
    config: OptimizerConfig, plan: Plan, param_groups: Sequence[dict[str, Any]]
) -> torch.optim.Optimizer:
    """The optimizer of all groups, or several that behave as one."""
    of_part: dict[str | None, list[dict[str, Any]]] = {}
    for group, live in zip(plan.groups, param_groups, strict=True):
        of_part.setdefault(group.part, []).append(live)
    parts = [construct(config, part, groups) for part, groups in of_part.items()]
    if list(of_part) == [None]:
        return parts[0]
    optimizer = registry.resolve(config.type, "optimizer", "optimizer.type")
    order = [group["name"] for group in param_groups]
    return CompositeOptimizer(parts, order, defaults=defaults_of(optimizer, config.arguments))


def construct(
    config: OptimizerConfig,
    part: str | None,
    params: Sequence[torch.Tensor | dict[str, Any]],
    tried: Group | None = None,
) -> torch.optim.Optimizer:
    """The section's optimizer, or that of one of its custom keys."""
    key, component = component_of(config, part)
    optimizer = registry.resolve(component.type, "optimizer", f"{key}.type")
    arguments = {**component.arguments, **(tried.options if tried else {})}
    try:
        built: torch.optim.Optimizer = optimizer(params, **with_fused(optimizer, arguments, params))
    except Exception as error:  # torch's own classes raise IndexError for `betas: [0.9]`
        of_group = f" for group {tried.name}" if tried else ""
        problem = f"{component.type} refuses its arguments{of_group}: {type(error).__name__}: {error}"
        raise ConfigError(key, problem, given=arguments) from error
    for group in built.param_groups:
        if group.get("capturable"):  # a CUDA graph reads lr where it was when the graph was captured
            group["lr"] = torch.tensor(float(group["lr"]), device=group["params"][0].device)
    step_local_shards(built)
    return built


def component_of(config: OptimizerConfig, part: str | None) -> tuple[str, Component]:
    """The section's optimizer, or a custom key's, with the place where it stands in the config."""
    if part is None:
        return "optimizer", Component(type=config.type, **config.arguments)
    return f"{CUSTOM_KEYS}.{part}", config.paramwise.parts[part]
