"""Names of a model's parameters as its author wrote them, whatever wraps the model.

DDP, FSDP1, `torch.compile` and activation checkpointing put modules of their own into the tree, and
their names into every FQN below. `walk` looks through them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import NamedTuple

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

_WRAPPED_CHILD = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")


def unwrap(module: nn.Module) -> nn.Module:
    """The author's module inside any number of wrappers.

    Wrappers are known by the child that they alone have; only DDP's `module` is an ordinary name, so
    there the type decides, and a model's own child called `module` stays in its FQNs.
    """
    while (inner := _wrapped_by(module)) is not None:
        module = inner
    return module


def _wrapped_by(module: nn.Module) -> nn.Module | None:
    if isinstance(module, DistributedDataParallel | DataParallel):
        inner: nn.Module = module.module
        return inner
    return next((module._modules[child] for child in _WRAPPED_CHILD if child in module._modules), None)


def module_type(module: nn.Module) -> type[nn.Module]:
    """The author's class: `fully_shard` replaces `Block` by a subclass `FSDPBlock` on the fly."""
    cls = type(module)
    if fsdp := sys.modules.get("torch.distributed.fsdp"):
        return next(base for base in cls.__mro__ if not issubclass(base, fsdp.FSDPModule))
    return cls


class Site(NamedTuple):
    """One place where a parameter hangs: a shared parameter has several."""

    fqn: str
    parameter: nn.Parameter
    owner: nn.Module
    parent: nn.Module | None
    distinct: bool
    """False where the same tensor already hangs in this very module, or this module beside itself under
    the same parent: a second name that `nn.Module.named_children` and MMEngine never see."""


def walk(model: nn.Module) -> Iterator[Site]:
    """Every site of every parameter: a module's own in registration order, then its children's."""
    yield from _walk(unwrap(model), None, "", True)


def _walk(module: nn.Module, parent: nn.Module | None, path: str, distinct: bool) -> Iterator[Site]:
    met: set[int] = set()
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield Site(path + name, parameter, module, parent, distinct and id(parameter) not in met)
            met.add(id(parameter))
    for name, wrapped in module._modules.items():
        if wrapped is not None:
            child = unwrap(wrapped)
            yield from _walk(child, module, f"{path}{name}.", distinct and id(child) not in met)
            met.add(id(child))


def live_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """FQN → the live parameter, aliases included."""
    return {site.fqn: site.parameter for site in walk(model)}


def ties(model: nn.Module) -> list[tuple[str, ...]]:
    """The FQNs of each shared parameter, in the order of the walk; the first is the owner's."""
    names: dict[int, list[str]] = {}
    for site in walk(model):
        names.setdefault(id(site.parameter), []).append(site.fqn)
    return [tuple(group) for group in names.values() if len(group) > 1]
