"""Names of a model's parameters as its author wrote them, whatever wraps the model.

DDP, FSDP1, `torch.compile` and activation checkpointing put modules of their own into the tree, and
their names into every FQN below. `visits` looks through them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from distopt.errors import ConfigError, listed, raise_all

WRAPPED_CHILD = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
"""What the wrappers call the module inside them; DDP's `module` is an ordinary name."""
_REPLICAS = (DistributedDataParallel, DataParallel)
_MIXINS = {"torch.distributed.fsdp": "FSDPModule", "torch.distributed._composable.replicate": "DDP"}
"""Home → what stands beside the author's class in one made on the fly. Looked up, never imported."""


def unwrap(module: nn.Module) -> nn.Module:
    """The author's module inside any number of wrappers.

    Wrappers are known by the child that they alone have; only DDP's `module` is an ordinary name, so
    there the type decides, and a model's own child called `module` stays in its FQNs.

    Raises:
        ConfigError: A wrapper has parameters beside those of what it wraps.
    """
    while (name := _wrapped_child(module)) is not None:
        inner = module._modules[name]
        assert inner is not None
        if len(module._modules) > 1 or module._parameters:
            wrapped = set(inner.parameters())
            beside = [fqn for fqn, p in module.named_parameters() if p not in wrapped]
            if beside:
                problem = f"the wrapper {type(module).__name__} has parameters of its own: {listed(beside)}"
                raise ConfigError("model", problem, allowed="parameters inside what is wrapped")
        module = inner
    return module


def _wrapped_child(module: nn.Module) -> str | None:
    children = module._modules
    if isinstance(module, _REPLICAS) and children.get("module") is not None:
        return "module"
    return next((name for name in WRAPPED_CHILD if children.get(name) is not None), None)


def module_type(module: nn.Module) -> type[nn.Module]:
    """The author's class: `fully_shard` replaces `Block` by a subclass `FSDPBlock` on the fly."""
    mixins = tuple(getattr(sys.modules[home], name) for home, name in _MIXINS.items() if home in sys.modules)
    return next(
        base for base in type(module).__mro__ if not issubclass(base, mixins) and not _is_parametrized(base)
    )


def _is_parametrized(cls: type) -> bool:
    """Each module that has parametrizations gets a class of its own, `ParametrizedLinear`."""
    return cls.__module__ == "torch.nn.utils.parametrize" and cls.__name__.startswith("Parametrized")


class Visit(NamedTuple):
    """One time that the walk comes to a module: a module used twice is visited twice."""

    module: nn.Module
    parent: nn.Module | None
    prefix: str
    """The FQN with a dot behind it; "" for the root."""
    distinct: bool
    """False where this module stands beside itself under the same parent, or above it one does: a second
    name that `nn.Module.named_children` and MMEngine never see."""


def visits(model: nn.Module) -> list[Visit]:
    """Every module at every place, each before its children, in the order of registration."""
    found: list[Visit] = []
    _visit(Visit(unwrap(model), None, "", True), found)
    return found


def _visit(visit: Visit, found: list[Visit]) -> None:
    found.append(visit)
    module, _, prefix, distinct = visit
    met = set()
    for name, child in module._modules.items():
        if child is not None:
            if child._modules:
                child = unwrap(child)
            child_visit = Visit(child, module, f"{prefix}{name}.", distinct and child not in met)
            met.add(child)
            if child._modules:
                _visit(child_visit, found)
            else:
                found.append(child_visit)


def live_parameters(walk: Sequence[Visit]) -> dict[str, nn.Parameter]:
    """FQN → the live parameter, aliases included, in the order of the walk."""
    return {
        visit.prefix + name: parameter
        for visit in walk
        for name, parameter in visit.module._parameters.items()
        if parameter is not None
    }


def ties(walk: Sequence[Visit]) -> list[tuple[str, ...]]:
    """The FQNs of each shared parameter, in the order of the walk; the first is the owner's.

    A parameter that some module holds as a buffer is tied to that, too.
    """
    held = [id(t) for visit in walk for t in visit.module._parameters.values() if t is not None]
    held += [id(t) for visit in walk for t in visit.module._buffers.values() if t is not None]
    if len(set(held)) == len(held):
        return []
    parameters = live_parameters(walk)
    names: dict[int, str] = {}
    tied: dict[str, list[str]] = {}
    for fqn, tensor in chain(parameters.items(), _buffers(walk)):
        owner = names.setdefault(id(tensor), fqn)
        if owner is not fqn:
            tied.setdefault(owner, [owner]).append(fqn)
    return [tuple(of_one) for owner, of_one in tied.items() if owner in parameters]


def check_ties(model: nn.Module, tied: Sequence[tuple[str, ...]], after: str) -> None:
    """Proves that what was tied still is.

    Args:
        model: As it is now.
        tied: From `ties`, of the model as its author made it.
        after: What has been done to it since, for the message.

    Raises:
        ConfigError: Naming the owner and those of its aliases that are another tensor now, or none.
    """
    if not tied:
        return
    walk = visits(model)
    live: dict[str, Tensor] = {**dict(_buffers(walk)), **live_parameters(walk)}
    raise_all(
        ConfigError(
            "model",
            f"a tie was broken by {after}: {owner} is no longer {listed(apart)}",
            allowed="tied modules in one unit, fully_shard([a, b]); names.tie(model, plan.ties) mends what"
            " to_empty and load_state_dict(assign=True) break",
        )
        for owner, *aliases in tied
        if (apart := [alias for alias in aliases if live.get(alias) is not live.get(owner)])
    )


def tie(model: nn.Module, tied: Sequence[tuple[str, ...]]) -> None:
    """Makes every alias its owner's tensor again."""
    holders = {visit.prefix: visit.module for visit in visits(model)}
    for owner, *aliases in tied:
        tensor = _slot(holders, owner)[owner.rpartition(".")[2]]
        for alias in aliases:
            _slot(holders, alias)[alias.rpartition(".")[2]] = tensor


def _slot(holders: dict[str, nn.Module], fqn: str) -> dict[str, Any]:
    """The dictionary, of parameters or of buffers, that has `fqn` under its last name."""
    path, dot, name = fqn.rpartition(".")
    module = holders[path + dot]
    return module._parameters if name in module._parameters else module._buffers


def _buffers(walk: Sequence[Visit]) -> Iterator[tuple[str, Tensor]]:
    for visit in walk:
        for name, buffer in visit.module._buffers.items():
            if buffer is not None:
                yield visit.prefix + name, buffer
