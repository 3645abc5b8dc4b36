"""From the YAML's `optimizer:` section to a plan, and from a plan to the optimizer."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from distopt import registry
from distopt.config import Component, OptimizerConfig, validate
from distopt.errors import ConfigError
from distopt.optim.arguments import with_fused
from distopt.optim.bind import bind
from distopt.optim.composite import CompositeOptimizer
from distopt.optim.decide import decide
from distopt.optim.lints import lint
from distopt.optim.plan import Group, Plan
from distopt.optim.rules import CUSTOM_KEYS


def make_plan(model: nn.Module, cfg: Mapping[str, Any] | OptimizerConfig) -> Plan:
    """Decides the groups of `model`: names, options and members. Builds no optimizer, touches no device.

    Args:
        model: Wrapped or not, on any device, meta included.
        cfg: The `optimizer:` section of the YAML, as a mapping.

    Raises:
        ConfigError: For anything wrong in the section, custom keys that match nothing, parameters shared
            without `bypass_duplicate`, nothing left to train, or a model that FSDP1 has flattened.
    """
    config = _validated(cfg)
    with _no_collection():
        decisions = decide(model, config)
        return Plan(
            optimizer=config.type,
            groups=decisions.groups,
            frozen=tuple(entry.fqn for entry in decisions.census.entries if not entry.requires_grad),
            ties=tuple(decisions.census.ties),
            warnings=lint(decisions),
        )


def build_optimizer(
    model: nn.Module, cfg: Mapping[str, Any] | OptimizerConfig, plan: Plan | None = None
) -> torch.optim.Optimizer:
    """Builds the optimizer over the live parameters of `model`: call it after wrapping.

    Args:
        model: The model as it will be trained.
        cfg: The `optimizer:` section of the YAML, as a mapping.
        plan: What `make_plan` decided on the unwrapped model; made from `model` where not given.

    Returns:
        An instance of the optimizer's class. Each of its `param_groups` has the group's `name` and
        `param_names`, the FQNs in the order of `params`.

    Raises:
        ConfigError: As `make_plan`; or where `model` no longer has the parameters and ties of `plan`.
    """
    config = _validated(cfg)
    plan = plan or make_plan(model, config)
    if plan.optimizer != config.type:
        raise ConfigError("optimizer.type", f"the plan was made for {plan.optimizer}", given=config.type)
    with _no_collection():
        return _assemble(config, plan, bind(plan, model))


def try_optimizer(plan: Plan, cfg: Mapping[str, Any] | OptimizerConfig) -> torch.optim.Optimizer:
    """An optimizer with the groups of `plan` over stand-ins of one element each: a trial of its arguments.

    Raises:
        ConfigError: The optimizer's class refuses its arguments, the options of a group, or a number of
            dimensions.
    """
    config = _validated(cfg)
    stand_ins = [
        [torch.zeros([1] * dims) for dims in sorted({len(entry.shape) for entry in group.entries})]
        for group in plan.groups
    ]
    for group, params in zip(plan.groups, stand_ins, strict=True):
        # As arguments, for the class checks only those: what stands in a group it takes as it is.
        _construct(config, group.part, params, tried=group)
    named = zip(plan.groups, stand_ins, strict=True)
    return _assemble(
        config, plan, [{"params": params, "name": group.name, **group.options} for group, params in named]
    )


class Configured:
    """The groups of a config: what `Prebuilt` is for an optimizer that its user built."""

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        self.config = config
        self.plan = make_plan(model, config)

    def trial(self) -> torch.optim.Optimizer:
        """See `try_optimizer`."""
        return try_optimizer(self.plan, self.config)

    def state_summary(self) -> str:
        """What the optimizer has before the first step."""
        return "none"

    def bind(self, model: nn.Module) -> torch.optim.Optimizer:
        """See `build_optimizer`."""
        return build_optimizer(model, self.config, self.plan)


def _assemble(
    config: OptimizerConfig, plan: Plan, param_groups: Sequence[dict[str, Any]]
) -> torch.optim.Optimizer:
    """The optimizer of all groups, or several that behave as one."""
    of_part: dict[str | None, list[dict[str, Any]]] = {}
    for group, live in zip(plan.groups, param_groups, strict=True):
        of_part.setdefault(group.part, []).append(live)
    parts = [_construct(config, part, groups) for part, groups in of_part.items()]
    if len(parts) == 1:
        return parts[0]
    main = parts[list(of_part).index(None)] if None in of_part else parts[0]
    return CompositeOptimizer(parts, [group["name"] for group in param_groups], defaults=main.defaults)


def _construct(
    config: OptimizerConfig,
    part: str | None,
    params: Sequence[torch.Tensor | dict[str, Any]],
    tried: Group | None = None,
) -> torch.optim.Optimizer:
    """The section's optimizer, or that of one of its custom keys."""
    key, component = "optimizer", Component(type=config.type, **config.arguments)
    if part is not None:
        key, component = f"{CUSTOM_KEYS}.{part}", config.paramwise.parts[part]
    optimizer = registry.resolve(component.type, "optimizer", f"{key}.type")
    arguments = {**component.arguments, **(tried.options if tried else {})}
    try:
        built: torch.optim.Optimizer = optimizer(params, **with_fused(optimizer, arguments, params))
    except Exception as error:  # torch's own classes raise IndexError for `betas: [0.9]`
        of_group = f" for group {tried.name}" if tried else ""
        problem = f"{component.type} refuses its arguments{of_group}: {type(error).__name__}: {error}"
        raise ConfigError(key, problem, given=arguments) from error
    return built


def _validated(cfg: Mapping[str, Any] | OptimizerConfig) -> OptimizerConfig:
    return cfg if isinstance(cfg, OptimizerConfig) else validate(OptimizerConfig, cfg, key="optimizer")


@contextmanager
def _no_collection() -> Iterator[None]:
    """Thousands of small objects that stay would make Python search all of torch's for garbage, in vain."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
