"""The census: what an unwrapped model has, as the rules look at it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import nn

from distopt import names


@dataclass(frozen=True, slots=True)
class Place:
    """One name of a parameter and what stands around it there."""

    fqn: str
    path: str
    """The FQN of the module that holds the parameter; "" for the root."""
    name: str
    """The parameter's own name in that module: `weight`, `bias`, …"""
    owner: type[nn.Module]
    """The class of the module that holds the parameter."""
    parent: type[nn.Module] | None
    """The class of the module above the owner."""
    depthwise: bool
    """The owner is a Conv2d with one group per input channel."""
    distinct: bool
    """See `names.Site`."""


@dataclass(frozen=True, slots=True)
class Entry:
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


def take_census(model: nn.Module) -> list[Entry]:
    """One entry per parameter, in the order of the walk. Works on a meta-device or wrapped model."""
    sites: dict[int, list[names.Site]] = {}
    for site in names.walk(model):
        sites.setdefault(id(site.parameter), []).append(site)
    return [_entry(of_one) for of_one in sites.values()]


def _entry(sites: list[names.Site]) -> Entry:
    parameter = sites[0].parameter
    return Entry(tuple(_place(site) for site in sites), tuple(parameter.shape), parameter.requires_grad)


def _place(site: names.Site) -> Place:
    owner = site.owner
    path, _, name = site.fqn.rpartition(".")
    return Place(
        fqn=site.fqn,
        path=path,
        name=name,
        owner=names.module_type(owner),
        parent=None if site.parent is None else names.module_type(site.parent),
        depthwise=isinstance(owner, nn.Conv2d) and owner.in_channels == owner.groups,
        distinct=site.distinct,
    )
