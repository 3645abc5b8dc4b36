"""An optimizer that its user built before the model is wrapped, taken over to the live parameters."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from distopt import names
from distopt.errors import ConfigError, listed
from distopt.optim.arguments import check_steps_once, is_plain, plain_options
from distopt.optim.bind import bind
from distopt.optim.census import Entry, take_census
from distopt.optim.changes import Change
from distopt.optim.local_shards import step_local_shards
from distopt.optim.plan import Group, Plan, free_name

_NO_OPTIONS = ("params", "name", "param_names", "initial_lr")


class Prebuilt:
    """Knows which parameter of an optimizer has which name, as long as the model is not wrapped.

    Args:
        optimizer: Built on the parameters of `model`. Its groups get a `name`, where they have none, and
            `param_names`; frozen parameters leave them, and groups that have no others leave the optimizer.
        model: Not yet wrapped.

    Raises:
        ConfigError: The optimizer has parameters that the model has not, or not all that are to be trained;
            none is; or its step needs a closure.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
        self.optimizer = optimizer
        check_steps_once(type(optimizer), type(optimizer).__name__, "optimizer")
        census = take_census(model)
        census.check_trainable()
        live = names.live_parameters(names.visits(model))
        entries = {id(live[entry.fqn]): entry for entry in census.entries}
        _check(optimizer, entries)
        self._before: dict[str, torch.Tensor] = {}
        taken = {"all"}
        groups = []
        for group in optimizer.param_groups:
            # A tied parameter may be listed twice.
            group["params"][:] = trained = list(dict.fromkeys(p for p in group["params"] if p.requires_grad))
            if not trained:
                continue
            name = free_name(str(group.get("name") or "default"), taken)
            taken.add(name)
            # A scheduler of torch's that was attached, or a run before this one, has moved the lr.
            if group.get("lr") is not None:
                group["lr"] = group["initial_lr"] = float(group.get("initial_lr", group["lr"]))
            options = _options(optimizer, group)
            members = tuple(entries[id(p)] for p in trained)
            own = plain_options(optimizer.defaults)
            kind = type(optimizer).__name__
            groups.append(Group(name, (), options, {}, members, kind, defaults=own))
            group["name"], group["param_names"] = name, groups[-1].param_names
            self._before |= zip(group["param_names"], trained, strict=True)
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        kept = {id(parameter) for parameter in self._before.values()}
        for parameter in [parameter for parameter in optimizer.state if id(parameter) not in kept]:
            del optimizer.state[parameter]
        self.plan = Plan(
            optimizer=type(optimizer).__name__,
            groups=tuple(groups),
            frozen=tuple(entry.fqn for entry in census.frozen),
            frozen_shapes={entry.fqn: entry.shape for entry in census.frozen},
            ties=tuple(census.ties),
        )

    def keep(self, changes: Sequence[Change], own: Mapping[str, Any]) -> None:
        """Refused: the groups are what their user has built."""
        raise ConfigError(
            "resume_groups",
            f"{type(self.optimizer).__name__} is built already, and not as the checkpoint has it",
            given="checkpoint",
            allowed="config; or an optimizer that is built with the values of the checkpoint",
        )

    def state_summary(self) -> str:
        """What the optimizer's state is, in few letters: equal on every rank, or they would train apart."""
        state = self.optimizer.state
        content = [
            (fqn, key, (list(v.shape), v.double().sum().item()) if isinstance(v, torch.Tensor) else repr(v))
            for fqn, parameter in self._before.items()
            if parameter in state
            for key, v in sorted(state[parameter].items())
        ]
        return hashlib.sha256(repr(content).encode()).hexdigest()[:16] if content else "none"

    def trial(self) -> torch.optim.Optimizer:
        """An optimizer with these groups, to look at."""
        return self.optimizer

    def bind(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer, with what `model` has now in the place of the parameters it was built with.

        State that is shaped like its parameter is sharded as that is: a collective.

        Raises:
            ConfigError: As `bind`; or state that cannot be sharded.
        """
        state = self.optimizer.state
        for group, bound in zip(self.optimizer.param_groups, bind(self.plan, model), strict=True):
            live = dict(bound["params"])
            for fqn, parameter in live.items():
                values = state.pop(self._before[fqn], {})
                if values:
                    state[parameter] = {
                        key: _like(parameter, fqn, key, value, group) for key, value in values.items()
                    }
            group["params"][:] = live.values()
        step_local_shards(self.optimizer)
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
    """Lr and weight decay, and what differs from the optimizer's own and is plain data."""
    always = ("lr", "weight_decay")
    options = {name: group[name] for name in always if name in group}
    others = (name for name in group if name not in (*always, *_NO_OPTIONS))
    return options | {
        name: group[name]
        for name in others
        if is_plain(group[name]) and group[name] != optimizer.defaults.get(name)
    }


def _like(parameter: nn.Parameter, fqn: str, key: str, value: Any, group: dict[str, Any]) -> Any:
    """A value of the optimizer's state where, and as, `parameter` is."""
    if not isinstance(value, torch.Tensor):
        return value
    if key == "step" and not (group.get("fused") or group.get("capturable")):
        return value
    value = value.to(parameter.device)
    if not isinstance(parameter, DTensor) or value.ndim == 0:
        return value
    if value.shape != parameter.shape:
        problem = f"its state {key} of {fqn} is not shaped like the parameter, and cannot be sharded"
        raise ConfigError("optimizer", problem, allowed="an optimizer without state; or strategy: ddp")
    return distribute_tensor(value, parameter.device_mesh, parameter.placements)
