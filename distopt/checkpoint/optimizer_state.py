"""The state of an optimizer by FQN, without groups and without hyper-parameters.

What a group is called, or which weight decay it has, is the config's to say, also on a resume. Only what an
optimizer counts in its groups, and takes as no argument, is state too.
"""

from __future__ import annotations

import inspect
from collections.abc import Container, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

ByFqn = dict[str, dict[str, Any]]
"""FQN → the state of that parameter (`exp_avg`, `step`, …)."""


def split(optimizer: torch.optim.Optimizer) -> tuple[ByFqn, ByFqn]:
    """The state's tensors, and its plain values (some optimizers count their steps in an int)."""
    tensors: ByFqn = {}
    values: ByFqn = {}
    for fqn, parameter in _named_parameters(optimizer).items():
        for name, value in optimizer.state.get(parameter, {}).items():
            part = tensors if isinstance(value, torch.Tensor) else values
            part.setdefault(fqn, {})[name] = value
    return tensors, values


def empty(
    optimizer: torch.optim.Optimizer,
    stored: Mapping[str, TensorStorageMetadata],
    owners: Mapping[str, str] = MappingProxyType({}),
    leave: Container[str] = (),
) -> ByFqn:
    """Tensors to load into, laid out like the live parameters: a new optimizer has no state yet.

    Args:
        optimizer: As for `split`.
        stored: All tensors of the checkpoint.
        owners: Alias → FQN of shared parameters: what is stored under an alias is the owner's.
        leave: FQNs of the parameters whose state is not to be loaded.
    """
    named = _named_parameters(optimizer)
    state: ByFqn = {}
    for key, metadata in stored.items():
        fqn, _, name = key.removeprefix("optim.").rpartition(".")
        owner = owners.get(fqn, fqn)
        if not key.startswith("optim.") or owner not in named or owner in leave:
            continue
        if owner != fqn and f"optim.{owner}.{name}" in stored:  # they were two
            continue
        parameter, dtype = named[owner], metadata.properties.dtype
        if metadata.size == parameter.shape:
            value = torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
        else:
            value = torch.zeros(metadata.size, dtype=dtype)
        state.setdefault(fqn, {})[name] = value
    return state


def restore(optimizer: torch.optim.Optimizer, tensors: ByFqn, values: ByFqn) -> None:
    """Sets the state; groups, and so every hyper-parameter, stay as the config has them."""
    whole = optimizer.state_dict()
    whole["state"] = {
        i: {**tensors.get(fqn, {}), **values.get(fqn, {})}
        for i, fqn in enumerate(_named_parameters(optimizer))
        if fqn in tensors or fqn in values
    }
    optimizer.load_state_dict(whole)


def group_state(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """What the optimizer has counted in its groups: `{"param_names": […], "values": {"k": 200}}`."""
    found = []
    for part in getattr(optimizer, "parts", [optimizer]):
        known = {*inspect.signature(type(part)).parameters, "params", "name", "param_names", "initial_lr"}
        for group in part.param_groups:
            values = {
                name: value
                for name, value in group.items()
                if name not in known and isinstance(value, bool | int | float)
                if value != part.defaults.get(name)
            }
            if values:
                found.append({"param_names": group["param_names"], "values": values})
    return found


def restore_groups(
    optimizer: torch.optim.Optimizer, saved: Iterable[Mapping[str, Any]], leave: Container[str] = ()
) -> None:
    """Each group takes up what was counted in the group that its first known parameter was in."""
    counted = {fqn: group["values"] for group in saved for fqn in group["param_names"]}
    for group in optimizer.param_groups:
        known = (counted[fqn] for fqn in group["param_names"] if fqn in counted and fqn not in leave)
        group.update({name: value for name, value in next(known, {}).items() if name in group})


def _named_parameters(optimizer: torch.optim.Optimizer) -> dict[str, nn.Parameter]:
    """In the order in which `Optimizer.state_dict` numbers them."""
    return {
        fqn: parameter
        for group in optimizer.param_groups
        for fqn, parameter in zip(group["param_names"], group["params"], strict=True)
    }
