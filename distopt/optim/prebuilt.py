"""An optimizer that its user built before the model is wrapped, taken over to the live parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from distopt import names
from distopt.errors import ConfigError, listed
from distopt.optim.bind import bind
from distopt.optim.census import Entry, take_census
from distopt.optim.plan import Group, Plan, free_name

_NO_OPTIONS = ("params", "name", "param_names", "initial_lr")


class Prebuilt:
    """Knows which parameter of an optimizer has which name, as long as the model is not wrapped.

    Args:
        optimizer: Built on the parameters of `model`. Its groups get a `name`, where they have none, and
            `param_names`; frozen parameters leave them.
        model: Not yet wrapped.

    Raises:
        ConfigError: The optimizer has parameters that the model has not, or not all that are to be trained.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
        self.optimizer = optimizer
        census = take_census(model)
        live = names.live_parameters(names.visits(model))
        entries = {id(live[entry.fqn]): entry for entry in census.entries}
        _check(optimizer, entries)
        self._before = {
            entries[id(parameter)].fqn: parameter
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        taken = {"all"}
        groups = []
        for group in optimizer.param_groups:
            group["name"] = free_name(str(group.get("name", "default")), taken)
            taken.add(group["name"])
            trained = [entries[id(p)] for p in group["params"] if p.requires_grad]
            groups.append(Group(group["name"], (), _options(optimizer, group), {}, tuple(trained)))
        self.plan = Plan(
            optimizer=type(optimizer).__name__,
            groups=tuple(groups),
            frozen=tuple(entry.fqn for entry in census.entries if not entry.requires_grad),
            ties=tuple(census.ties),
        )
        for group, planned in zip(optimizer.param_groups, groups, strict=True):
            group["param_names"] = planned.param_names
            group["params"] = [self._before[fqn] for fqn in planned.param_names]

    def rebind(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer, with what `model` has now in the place of the parameters it was built with.

        State that is shaped like its parameter is sharded as that is.

        Raises:
            ConfigError: As `bind`.
        """
        state = self.optimizer.state
        for group, bound in zip(self.optimizer.param_groups, bind(self.plan, model), strict=True):
            live = dict(bound["params"])
            for fqn, parameter in live.items():
                values = state.pop(self._before[fqn], {})
                if values:
                    state[parameter] = {key: _like(parameter, key, v, group) for key, v in values.items()}
            group["params"] = list(live.values())
        return self.optimizer


def _check(optimizer: torch.optim.Optimizer, entries: dict[int, Entry]) -> None:
    built_with = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    foreign = [f"of shape {list(p.shape)}" for p in built_with if id(p) not in entries]
    if foreign:
        raise ConfigError(
            "optimizer",
            f"{type(optimizer).__name__} has parameters that are not the model's: {listed(foreign)}",
            allowed="an optimizer built on the parameters of this model, before it is wrapped or copied",
        )
    owned = {id(parameter) for parameter in built_with}
    left = [entry.fqn for key, entry in entries.items() if entry.requires_grad and key not in owned]
    if left:
        raise ConfigError(
            "optimizer",
            f"{type(optimizer).__name__} would not train {listed(left)}",
            allowed="each in a group, or requires_grad_(False) where it is not to be trained",
        )


def _options(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> dict[str, Any]:
    """Lr and weight decay, and what differs from the optimizer's own."""
    always = ("lr", "weight_decay")
    options = {name: float(group[name]) for name in always if name in group}
    others = (name for name in group if name not in (*always, *_NO_OPTIONS))
    return options | {name: group[name] for name in others if group[name] != optimizer.defaults.get(name)}


def _like(parameter: nn.Parameter, key: str, value: Any, group: dict[str, Any]) -> Any:
    """A value of the optimizer's state where, and as, `parameter` is."""
    if not isinstance(value, torch.Tensor):
        return value
    if key == "step" and not (group.get("fused") or group.get("capturable")):
        return value
    value = value.to(parameter.device)
    if isinstance(parameter, DTensor) and value.shape == parameter.shape:
        return distribute_tensor(value, parameter.device_mesh, parameter.placements)
    return value
