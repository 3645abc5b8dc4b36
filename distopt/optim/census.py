"""The census: what an unwrapped model has, as the rules look at it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

from torch import nn

from distopt import names
from distopt.errors import ConfigError, listed


class Holder(NamedTuple):
    """A module that holds parameters, at one place of the model."""

    prefix: str
    """Its FQN with a dot behind it; "" for the root."""
    cls: type[nn.Module]
    """The author's."""
    parent: type[nn.Module] | None
    """The class of the module above."""
    depthwise: bool
    """A Conv2d with one group per input channel."""
    distinct: bool
    """See `names.Visit`."""

    @property
    def path(self) -> str:
        return self.prefix.removesuffix(".")


class Place(NamedTuple):
    """One name of a parameter and what stands around it there."""

    fqn: str
    name: str
    """The parameter's own name in its module: `weight`, `bias`, …"""
    holder: Holder
    distinct: bool
    """False where the same tensor already hangs in this very module, or the holder is not distinct."""


class Entry(NamedTuple):
    """One parameter, however many names it has; `places[0]` is its owner's, the others are aliases."""

    places: tuple[Place, ...]
    shape: tuple[int, ...]
    """The global shape, also of a sharded parameter."""
    requires_grad: bool

    @property
    def fqn(self) -> str:
        return self.places[0].fqn

    @property
    def aliases(self) -> tuple[str, ...]:
        return tuple(place.fqn for place in self.places[1:])

    @property
    def numel(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Census:
    """All parameters of a model, in the order of the walk: a module's own, then its children's."""

    entries: list[Entry]
    ties: list[tuple[str, ...]]
    """See `names.ties`."""
    marked: frozenset[str]
    """The FQNs of parameters that their author marked by `_no_weight_decay = True`. Wrapping loses marks."""
    overlaps: list[tuple[str, ...]]
    """The FQNs of parameters that begin at one address and yet are several."""
    model: nn.Module
    """The unwrapped model, whose parameters may be anything by now."""

    def places(self) -> Iterator[tuple[Entry, Place]]:
        """Every name of every parameter."""
        return ((entry, place) for entry in self.entries for place in entry.places)

    @property
    def frozen(self) -> list[Entry]:
        return [entry for entry in self.entries if not entry.requires_grad]

    def check_trainable(self) -> None:
        """Raises ConfigError where there is nothing to train."""
        if not any(entry.requires_grad for entry in self.entries):
            problem = "every parameter is frozen" if self.entries else "no trainable parameters"
            given, allowed = names.module_type(self.model).__name__, "at least one that requires a gradient"
            raise ConfigError("model", problem, given=given, allowed=allowed)


def take_census(model: nn.Module) -> Census:
    """Works on a meta-device or wrapped model.

    Raises:
        ConfigError: FSDP1 hides the shapes that rules look at, or lazy modules have none yet.
    """
    walk = names.visits(model)
    if is_flattened(model):
        raise ConfigError(
            "model",
            "FSDP1 (FullyShardedDataParallel) hides the shapes that the rules look at",
            allowed="fully_shard(model) of torch.distributed.fsdp (FSDP2); or use_orig_params=True, and"
            " build_optimizer(model, cfg, plan=plan) with the plan that make_plan made before wrapping",
        )
    found: dict[int, tuple[nn.Parameter, list[Place]]] = {}
    types: dict[type, Any] = {type(None): None}
    for module, parent, prefix, distinct in walk:
        if not module._parameters:
            continue
        for of in (module, parent):
            if of is not None and type(of) not in types:
                types[type(of)] = names.module_type(of)
        holder = Holder(
            prefix,
            types[type(module)],
            types[type(parent)],
            isinstance(module, nn.Conv2d) and module.in_channels == module.groups,
            distinct,
        )
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in found:
                    found[id(parameter)] = parameter, [Place(prefix + name, name, holder, distinct)]
                else:
                    others = found[id(parameter)][1]
                    here = distinct and others[-1].holder is not holder
                    others.append(Place(prefix + name, name, holder, here))
    shapeless = [
        places[0].fqn
        for parameter, places in found.values()
        if issubclass(type(parameter), nn.UninitializedParameter)
    ]
    if shapeless:
        raise ConfigError(
            "model",
            f"lazy modules have no shapes yet: {listed(shapeless)}",
            allowed="model(batch) once, before the plan is made",
        )
    return Census(
        entries=[
            Entry(tuple(places), parameter.shape, parameter.requires_grad)
            for parameter, places in found.values()
        ],
        ties=names.ties(walk),
        marked=frozenset(
            places[0].fqn
            for parameter, places in found.values()
            if getattr(parameter, "_no_weight_decay", False)
        ),
        overlaps=_overlaps(found.values()),
        model=names.unwrap(model),
    )


def _overlaps(found: Iterable[tuple[nn.Parameter, list[Place]]]) -> list[tuple[str, ...]]:
    beginning: dict[int, list[str]] = {}
    for parameter, places in found:
        if type(parameter) is nn.Parameter and (address := parameter.data_ptr()):
            beginning.setdefault(address, []).append(places[0].fqn)
    return [tuple(fqns) for fqns in beginning.values() if len(fqns) > 1]


def is_flattened(model: nn.Module) -> bool:
    """Whether FSDP1 has made vectors, or parts of them, of the parameters."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and any(isinstance(m, fsdp.FullyShardedDataParallel) for m in modules(model))


def modules(model: nn.Module) -> Iterator[nn.Module]:
    """Wrappers included; `nn.Module.modules` takes four times as long."""
    left: list[nn.Module | None] = [model]
    while left:
        if (module := left.pop()) is not None:
            yield module
            left.extend(module._modules.values())
