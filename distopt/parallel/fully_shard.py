"""FSDP2 and HSDP: parameters, gradients and optimizer state sharded over ranks."""

from __future__ import annotations

from collections.abc import Sequence, Set
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.nn.parallel import DistributedDataParallel

from distopt import comm, names
from distopt.config import StrategyConfig
from distopt.errors import ConfigError, listed, nearest
from distopt.parallel.mesh import make_mesh
from distopt.parallel.precision import Precision, dtype_of
from distopt.parallel.units import find_units


def shard(model: nn.Module, strategy: StrategyConfig, device: torch.device, precision: Precision) -> None:
    """Shards a model in place: its units, and the rest with the root.

    Raises:
        ConfigError: Patterns that match nothing; trainable parameters that are to be ignored; several dtypes
            in a unit.
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
    units, ignored = plan_shards(model, strategy)
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
            parameter.data = parameter.data.to(device)
    _prefetch(units, strategy.prefetch)
    if strategy.find_unused_parameters:
        model.set_reduce_scatter_unused_params(True)  # type: ignore[operator]


def plan_shards(
    model: nn.Module, strategy: StrategyConfig
) -> tuple[list[nn.Module], set[nn.Parameter] | None]:
    """The units, in the order of the walk, and the parameters that stay whole.

    Raises:
        ConfigError: As `shard`; an option that this torch does not have.
    """
    if strategy.find_unused_parameters and not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        problem = f"means nothing to the fsdp of torch {torch.__version__}"
        raise ConfigError(
            "strategy.find_unused_parameters", problem, given=True, allowed="false; or a newer torch"
        )
    ignored = _ignored(model, strategy)
    units = find_units(model, strategy.units)
    _check_dtypes(model, [*reversed(units), model], ignored or set())
    return units, ignored


def check_same_used(model: nn.Module, loss: Tensor) -> None:
    """To be called between the first forward and backward, where gradients are exchanged; by every rank.

    Raises:
        ConfigError: Ranks use different parameters, whose gradients FSDP would send as if they were the same,
            and for which a static graph of DDP's would wait.
    """
    if isinstance(model, DistributedDataParallel) and model.static_graph:
        leaves, live = _leaves(loss), names.live_parameters(names.visits(model))
        used = {fqn for fqn, p in live.items() if p in leaves}
        if apart := _apart(used):
            raise ConfigError(
                "strategy.static_graph",
                "on the first batch only some ranks use all of the model, and would wait for the others",
                given=f"{listed(apart)} used by some",
                allowed="{type: ddp, find_unused_parameters: true}, which costs time",
            )
    if not isinstance(model, FSDPModule):
        return
    groups = [group for module in model.modules() for group in _param_groups(module)]
    leaves = _leaves(loss)
    used, whole_units = set(), False
    for group in groups:
        of_group = {str(p._param_fqn) for p in group.fsdp_params if _is_gathered(p, leaves)}
        looks_for_unused = getattr(group, "reduce_scatter_unused_params", False)
        if looks_for_unused and of_group:  # of which one parameter will do
            whole_units, of_group = True, {group._module_fqn or "the root"}
        used |= of_group
    if not (apart := _apart(used)):
        return
    if whole_units:
        raise ConfigError(
            "strategy.units",
            "on the first batch only some ranks use all units, and wait there for the others",
            given=f"{listed(apart)} used by some",
            allowed="units that are called on every rank, or on none: what is around these",
        )
    raise ConfigError(
        "strategy.find_unused_parameters",
        "on the first batch only some ranks use all of the model, and would wait for the others",
        given=f"{listed(apart)} used by some",
        allowed="true; or a model whose parameters have a part in the loss on every rank, or on none",
    )


def _param_groups(module: nn.Module) -> list[Any]:
    """What FSDP gathers together of the parameters of a unit; nothing where the module is none."""
    if not isinstance(module, FSDPModule):
        return []
    state: Any = module._get_fsdp_state()
    if hasattr(state, "_fsdp_param_groups"):
        return list(state._fsdp_param_groups)
    return [group for group in [state._fsdp_param_group] if group]  # of torch 2.11


def _apart(used: set[str]) -> list[str]:
    """What only some ranks use; every rank calls it."""
    of_ranks = comm.gather(used)
    return sorted(used.union(*of_ranks) - used.intersection(*of_ranks))


def _is_gathered(parameter: Any, leaves: Set[Tensor]) -> bool:
    return hasattr(parameter, "_unsharded_param") and parameter.unsharded_param in leaves


def _leaves(loss: Tensor) -> set[Tensor]:
    """The parameters that have a part in `loss`."""
    seen = {loss.grad_fn}
    queue = [loss.grad_fn]
    leaves: set[Tensor] = set()
    while queue:
        node = queue.pop()
        if node is None:
            continue
        if hasattr(node, "variable"):
            leaves.add(node.variable)
        new = {function for function, _ in node.next_functions} - seen
        seen |= new
        queue += new
    return leaves


def _check_dtypes(model: nn.Module, units: Sequence[nn.Module], seen: Set[nn.Parameter]) -> None:
    """What is added up over ranks in one collective has one dtype. `units`: what is inside another first."""
    fqns = {p: fqn for fqn, p in names.live_parameters(names.visits(model)).items()}
    for unit in units:
        of_unit = [p for p in unit.parameters() if p not in seen]
        seen = seen | set(of_unit)
        by_dtype = {p.dtype: f"{fqns[p]}: {p.dtype}" for p in of_unit if p.requires_grad}
        if len(by_dtype) > 1:
            raise ConfigError(
                "strategy",
                "in a unit of fsdp's, what is trained has one dtype",
                given=listed(list(by_dtype.values())),
                allowed="a model of one dtype; strategy.units with one each; or ddp",
            )


def _ignored(model: nn.Module, strategy: StrategyConfig) -> set[nn.Parameter] | None:
    """The frozen parameters that stay whole on every rank."""
    live = names.live_parameters(names.visits(model))
    chosen: set[nn.Parameter] = set()
    for pattern in strategy.ignored or ():
        matches = [fqn for fqn in live if fnmatchcase(fqn, pattern)]
        trained = [fqn for fqn in matches if live[fqn].requires_grad]
        if not matches:
            problem = "no parameter of the model matches this pattern"
            raise ConfigError(
                "strategy.ignored",
                problem,
                given=pattern,
                allowed="patterns of FQNs: embedding.*",
                suggestion=nearest(pattern, live),
            )
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
