"""FSDP2 and HSDP: parameters, gradients and optimizer state sharded over ranks."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)

from distopt import names
from distopt.config import StrategyConfig
from distopt.errors import ConfigError, listed, nearest
from distopt.parallel.mesh import make_mesh
from distopt.parallel.precision import Precision, dtype_of
from distopt.parallel.units import find_units


def shard(model: nn.Module, strategy: StrategyConfig, device: torch.device, precision: Precision) -> None:
    """Shards a model in place: its units, and the rest with the root.

    Raises:
        ConfigError: Patterns that match nothing; trainable parameters that are to be ignored.
    """
    mesh = make_mesh(strategy, device)
    gathered = dtype_of(strategy.param_dtype or precision)
    policy = MixedPrecisionPolicy(
        param_dtype=None if gathered == torch.float32 else gathered,
        reduce_dtype=dtype_of(strategy.reduce_dtype),
        cast_forward_inputs=False,  # autocast decides what is computed in what, as under every strategy
    )
    offload = OffloadPolicy()
    if strategy.cpu_offload:
        offload = CPUOffloadPolicy(pin_memory=device.type == "cuda")
    ignored = _ignored(model, strategy)
    units = find_units(model, strategy.units)
    for module in [*reversed(units), model]:  # what is inside another first
        fully_shard(
            module,
            mesh=mesh,
            reshard_after_forward=strategy.reshard_after_forward if module is not model else None,
            mp_policy=policy,
            offload_policy=offload,
            ignored_params=ignored,
        )
    for parameter in ignored or ():  # which fully_shard leaves where they are
        if not parameter.is_meta:
            parameter.data = parameter.to(device)
    _prefetch(units, strategy.prefetch)


def _ignored(model: nn.Module, strategy: StrategyConfig) -> set[nn.Parameter] | None:
    """The frozen parameters that stay whole on every rank."""
    live = names.live_parameters(names.visits(model))
    chosen: set[nn.Parameter] = set()
    for pattern in strategy.ignored or ():
        matches = [fqn for fqn in live if fnmatchcase(fqn, pattern)]
        trained = [fqn for fqn in matches if live[fqn].requires_grad]
        if not matches:
            problem = "no parameter of the model matches this pattern"
            raise ConfigError("strategy.ignored", problem, given=pattern, suggestion=nearest(pattern, live))
        if trained:
            problem = f"{listed(trained)} is trained, and nobody would add up its gradients over ranks"
            raise ConfigError("strategy.ignored", problem, given=pattern, allowed="frozen parameters")
        chosen |= {live[fqn] for fqn in matches}
    return chosen or None


def _prefetch(units: Sequence[nn.Module], count: int) -> None:
    """Lets each unit gather those that follow it, in the forward and in the backward."""
    if not count:
        return
    sharded: list[FSDPModule] = [unit for unit in units if isinstance(unit, FSDPModule)]
    for i, unit in enumerate(sharded):
        unit.set_modules_to_forward_prefetch(sharded[i + 1 : i + 2 + count])
        unit.set_modules_to_backward_prefetch(sharded[max(0, i - 1 - count) : i][::-1])
