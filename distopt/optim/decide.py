"""Deciding: the census and the constructor's verdict on each trainable parameter."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from distopt import registry
from distopt.config import Component, OptimizerConfig
from distopt.config.optimizer import KEY_SETTINGS
from distopt.errors import ConfigError, describe, listed, nearest, raise_all
from distopt.optim.arguments import check_optimizer, hyperparameters, options_of
from distopt.optim.census import Census, Entry, Place, take_census
from distopt.optim.plan import Group, merge
from distopt.optim.rules import CUSTOM_KEYS
from distopt.optim.verdict import Constructor, Verdict

CONSTRUCTOR = "optimizer.constructor"


@dataclass(frozen=True)
class Decisions:
    """What was decided about a model, and by whom."""

    config: OptimizerConfig
    census: Census
    constructor: Constructor
    options: tuple[str, ...] | None
    """What a group of this optimizer can have; None where its signature does not tell."""
    defaults: Mapping[str, Any]
    """What a group has that no rule touches: lr and weight_decay, in that order."""

    @property
    def groups(self) -> tuple[Group, ...]:
        """The verdicts merged."""
        parts = {None: Component(type=self.config.type, **self.config.arguments)}
        optimizers = {
            key: (part.type, hyperparameters(part.type, part.arguments))
            for key, part in (parts | self.config.paramwise.parts).items()
        }
        return merge(self.verdicts, self.defaults, optimizers)

    @cached_property
    def verdicts(self) -> list[tuple[Entry, Verdict]]:
        """On the trainable parameters, in the order of the walk."""
        with _blaming(self.config.constructor):
            checked: set[Verdict] = set()
            verdicts = []
            for entry in self.census.entries:
                if entry.requires_grad:
                    verdict = self.constructor.decide(entry, entry.places[0])
                    if not isinstance(verdict, Verdict) or verdict not in checked:
                        self._check(verdict, entry.fqn)
                        checked.add(verdict)
                    verdicts.append((entry, verdict))
        return verdicts

    def verdict(self, entry: Entry, place: Place) -> Verdict:
        """The verdict on a parameter, were `place` the first of its names."""
        with _blaming(self.config.constructor):
            verdict = self.constructor.decide(entry, place)
            self._check(verdict, place.fqn)
        return verdict

    def described(self, entry: Entry) -> str:
        """What each name of a parameter gets: `a.weight → default; b.weight → head (lr 0.01)`."""
        return "; ".join(f"{place.fqn} → {self.verdict(entry, place)}" for place in entry.places)

    def _check(self, verdict: object, fqn: str) -> None:
        what = f"{type(self.constructor).__name__}.decide"
        if not isinstance(verdict, Verdict):
            problem = f"{what} returned {type(verdict).__name__} for {fqn}"
            raise ConfigError(CONSTRUCTOR, problem, given=verdict, allowed="a distopt.optim.Verdict")
        kinds = {"label": str, "rules": tuple, "options": Mapping, "why": Mapping}
        for name, kind in kinds.items():
            value = getattr(verdict, name)
            if not isinstance(value, kind) or (
                kind is not str and not all(isinstance(v, str) for v in value)
            ):
                raise ConfigError(
                    CONSTRUCTOR,
                    f"{what} gives {fqn} a Verdict whose {name} is a {type(value).__name__}",
                    given=value,
                    allowed={str: "a string", tuple: "a tuple of strings"}.get(kind, "a mapping by strings"),
                )
        parts = self.config.paramwise.parts
        if verdict.part is not None and verdict.part not in parts:
            problem = f"{what} gives {fqn} to an optimizer that no custom key names"
            raise ConfigError(CONSTRUCTOR, problem, given=verdict.part, allowed=list(parts) or "none")
        known = self.options if verdict.part is None else None
        unknown = [name for name in verdict.options if known is not None and name not in known]
        if unknown:
            problem = f"{what} gives {fqn} options that {self.config.type} does not have: {listed(unknown)}"
            raise ConfigError(CONSTRUCTOR, problem, allowed=self.options)


def decide(model: nn.Module, config: OptimizerConfig) -> Decisions:
    """Raises ConfigError for anything wrong in the section, and where there is nothing to train."""
    optimizer = check_optimizer(config.type, config.arguments, "optimizer")
    for key, part in config.paramwise.parts.items():
        check_optimizer(part.type, part.arguments, f"{CUSTOM_KEYS}.{key}")
    options = options_of(optimizer)
    if options is not None:
        raise_all(_unknown_options(config, options))
    census = take_census(model)
    census.check_trainable()
    constructor = _construct(config, census)
    decisions = Decisions(config, census, constructor, options, _defaults(optimizer, config.arguments))
    if config.paramwise_cfg is not None and not config.paramwise_cfg.bypass_duplicate:
        raise_all(_shared(decisions))
    return decisions


def _construct(config: OptimizerConfig, census: Census) -> Constructor:
    cls = registry.resolve(config.constructor, "constructor", CONSTRUCTOR)
    with _blaming(config.constructor):
        constructor: Constructor = cls(config, census)
    return constructor


@contextmanager
def _blaming(constructor: str) -> Iterator[None]:
    """What a constructor of the user's raises is said with its line."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        problem = f"raised {describe(error)}"
        raise ConfigError(CONSTRUCTOR, problem, given=constructor) from error


def _unknown_options(config: OptimizerConfig, options: Iterable[str]) -> Iterator[ConfigError]:
    """An error for what stands in custom keys and is no option of the optimizer."""
    known = [*KEY_SETTINGS, "type", *options]
    for key, entry in config.paramwise.custom_keys.items():
        for name in entry if "type" not in entry else ():
            if name not in known:
                yield ConfigError(
                    f"{CUSTOM_KEYS}.{key}.{name}",
                    "unknown option",
                    allowed=known,
                    suggestion=nearest(name, known),
                )


def _defaults(optimizer: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(optimizer).parameters
    return {
        name: arguments[name] if name in arguments else parameters[name].default
        for name in ("lr", "weight_decay")
        if name in arguments or name in parameters
    }


def _shared(decisions: Decisions) -> Iterator[ConfigError]:
    """An error for each trainable parameter that the walk meets twice."""
    for entry, _ in decisions.verdicts:
        if sum(place.distinct for place in entry.places) > 1:
            yield ConfigError(
                "optimizer.paramwise_cfg",
                f"one parameter has several names: {decisions.described(entry)}",
                allowed="bypass_duplicate: true owns it once, by the verdict on the first name",
            )
