"""From the YAML's `optimizer:` section to a plan, and from a plan to the optimizer."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from distopt.config import OptimizerConfig, validate
from distopt.errors import ConfigError
from distopt.optim.bind import bind
from distopt.optim.changes import Change, keep
from distopt.optim.construct import assemble
from distopt.optim.decide import decide
from distopt.optim.lints import lint
from distopt.optim.plan import Plan
from distopt.optim.trial import try_optimizer, try_sharded


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
            frozen=tuple(entry.fqn for entry in decisions.census.frozen),
            frozen_shapes={entry.fqn: entry.shape for entry in decisions.census.frozen},
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
        return assemble(config, plan, bind(plan, model))


class Configured:
    """The groups of a config: what `Prebuilt` is for an optimizer that its user built."""

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        self.config = config
        self.plan = make_plan(model, config)
        self._own: dict[str, Any] = {}

    def keep(self, changes: Sequence[Change], own: Mapping[str, Any]) -> None:
        """Puts what a checkpoint has in the place of what the config says.

        Args:
            changes: The options of parameters that are to keep their old values.
            own: The optimizer's own values in the checkpoint: an absolute `eta_min` is relative to them.

        Raises:
            ConfigError: An option is not one that each group of the optimizer has.
        """
        settable = {group["name"]: group for group in self.trial().param_groups}
        names = {fqn: group.name for group in self.plan.groups for fqn in group.param_names}
        for change in changes:
            if change.option not in settable[names[change.fqn]]:
                problem = f"the groups of this optimizer have no {change.option} of their own to keep"
                raise ConfigError(
                    "resume_groups",
                    problem,
                    given="checkpoint",
                    allowed=f"config, with {change.option}: {change.old}",
                )
        self.plan = keep(self.plan, changes)
        self._own = dict(own)

    def trial(self) -> torch.optim.Optimizer:
        """See `try_optimizer`."""
        return try_optimizer(self.plan, self.config)

    def state_summary(self) -> str:
        """What the optimizer has before the first step."""
        return "none"

    def bind(self, model: nn.Module) -> torch.optim.Optimizer:
        """See `build_optimizer`. An optimizer that cannot step sharded parameters is refused."""
        optimizer = build_optimizer(model, self.config, self.plan)
        try_sharded(self.plan, self.config, optimizer)
        optimizer.defaults.update(self._own)
        return optimizer


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
