"""Bind: the plan's names → the live parameters of the wrapped model, proved to be the right ones."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import nn

from distopt import names
from distopt.errors import ConfigError, listed
from distopt.optim.census import Entry, is_flattened, modules
from distopt.optim.plan import Plan


def bind(plan: Plan, model: nn.Module) -> list[dict[str, Any]]:
    """`param_groups` for an optimizer over the parameters that `model` has now.

    Wrapping may replace a parameter object, untie shared ones, or leave them on the meta device; an
    optimizer over what was there before would train nothing, silently. So every trainable parameter is
    proved to be owned exactly once, and every alias to be the owner's tensor.

    Raises:
        ConfigError: Where `model` is not the model that `plan` was made for, or not all of it is real.
    """
    _reshard(model)
    live = names.live_parameters(names.visits(model))
    planned = {entry.fqn: entry for group in plan.groups for entry in group.entries}
    _check_presence(planned, live)
    names.check_ties(model, plan.ties, after="wrapping or loading")
    _check_ownership(planned, live)
    _check_shapes(planned, live, model)
    return [
        {**group.options, "params": [(fqn, live[fqn]) for fqn in group.param_names], "name": group.name}
        for group in plan.groups
    ]


def _reshard(model: nn.Module) -> None:
    """FSDP2 leaves the root's gathered parameters in the modules after a forward: nobody trains those."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None:
        for module in modules(model):
            if isinstance(module, fsdp.FSDPModule):
                module.reshard()


def _check_presence(planned: Iterable[str], live: dict[str, nn.Parameter]) -> None:
    missing = [fqn for fqn in planned if fqn not in live]
    if missing and any(fqn.endswith("_flat_param") for fqn in live):
        raise ConfigError(
            "model",
            f"FSDP1 with use_orig_params=False leaves flat parameters in place of {listed(missing)}",
            allowed="use_orig_params=True; or fully_shard(model) of torch.distributed.fsdp (FSDP2)",
        )
    if missing:
        raise ConfigError("model", f"parameters of the plan are gone: {listed(missing)}")


def _check_ownership(planned: Collection[str], live: dict[str, nn.Parameter]) -> None:
    owned = {id(live[fqn]): fqn for fqn in planned}
    if len(owned) < len(planned):
        twice = next(fqn for fqn in planned if owned[id(live[fqn])] != fqn)
        raise ConfigError(
            "model",
            f"two parameters of the plan are one now: {twice} and {owned[id(live[twice])]}",
            allowed="a plan made after tying them",
        )
    trainable = {id(parameter): fqn for fqn, parameter in live.items() if parameter.requires_grad}
    unowned = [fqn for key, fqn in trainable.items() if key not in owned]
    if unowned:
        raise ConfigError("model", f"trainable parameters that the plan does not have: {listed(unowned)}")
    frozen = [fqn for key, fqn in owned.items() if key not in trainable]
    if frozen:
        raise ConfigError("model", f"parameters of the plan have been frozen since: {listed(frozen)}")
    unreal = [fqn for fqn, parameter in live.items() if parameter.is_meta]
    if unreal:
        raise ConfigError(
            "model",
            f"parameters are still on the meta device: {listed(unreal)}",
            allowed="materialise it first",
        )


def _check_shapes(planned: Mapping[str, Entry], live: dict[str, nn.Parameter], model: nn.Module) -> None:
    others = [
        f"{fqn} {list(live[fqn].shape)}, not {list(entry.shape)}"
        for fqn, entry in planned.items()
        if live[fqn].shape != entry.shape
    ]
    if others and not is_flattened(model):
        raise ConfigError("model", f"parameters have other shapes than in the plan: {listed(others)}")
