"""Bind: the plan's names → the live parameters of the wrapped model, proved to be the right ones."""

from __future__ import annotations

from typing import Any

from torch import nn

from distopt import names
from distopt.errors import ConfigError
from distopt.optim.plan import Plan


def bind(plan: Plan, model: nn.Module) -> list[dict[str, Any]]:
    """`param_groups` for an optimizer over the parameters that `model` has now.

    Wrapping may replace a parameter object, untie shared ones, or leave them on the meta device; an
    optimizer over what was there before would train nothing, silently. So every trainable parameter is
    proved to be owned exactly once, and every alias to be the owner's tensor.

    Raises:
        ConfigError: Where `model` is not the model that `plan` was made for, or not all of it is real.
    """
    live = names.live_parameters(model)
    _check_ties(plan, live)
    _check_names(plan, live)
    return [
        {"params": [(fqn, live[fqn]) for fqn in group.param_names], "name": group.name, **group.options}
        for group in plan.groups
    ]


def _check_names(plan: Plan, live: dict[str, nn.Parameter]) -> None:
    planned = [entry for group in plan.groups for entry in group.entries]
    missing = [entry.fqn for entry in planned if entry.fqn not in live]
    if missing:
        raise ConfigError("model", f"parameters of the plan are gone: {_some(missing)}")
    owned = {id(live[entry.fqn]) for entry in planned}
    unowned = [
        fqn for fqn, parameter in live.items() if parameter.requires_grad and id(parameter) not in owned
    ]
    if unowned:
        raise ConfigError("model", f"trainable parameters that the plan does not have: {_some(unowned)}")
    unreal = [entry.fqn for entry in planned if live[entry.fqn].is_meta]
    if unreal:
        raise ConfigError(
            "model",
            f"parameters are still on the meta device: {_some(unreal)}",
            allowed="materialise it first",
        )


def _check_ties(plan: Plan, live: dict[str, nn.Parameter]) -> None:
    for group in plan.groups:
        for entry in group.entries:
            broken = [alias for alias in entry.aliases if live.get(alias) is not live.get(entry.fqn)]
            if broken:
                raise ConfigError(
                    "model",
                    f"a tie was broken by wrapping: {entry.fqn} is no longer {_some(broken)}",
                    allowed="tied modules wrapped as one unit",
                )


def _some(fqns: list[str], most: int = 5) -> str:
    more = f" and {len(fqns) - most} more" if len(fqns) > most else ""
    return ", ".join(fqns[:most]) + more
