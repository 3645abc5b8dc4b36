"""Deciding: the census and the constructor's verdict on each trainable parameter."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from distopt import registry
from distopt.config import OptimizerConfig
from distopt.errors import ConfigError, nearest, raise_all
from distopt.errors import describe as describe_error
from distopt.optim.census import Census, Entry, take_census
from distopt.optim.rules import CUSTOM_KEYS, KEY_SETTINGS
from distopt.optim.verdict import Constructor, Verdict

CONSTRUCTOR = "optimizer.constructor"


@dataclass(frozen=True)
class Decisions:
    """What was decided about a model, and by whom."""

    config: OptimizerConfig
    census: Census
    constructor: Constructor
    verdicts: list[tuple[Entry, Verdict]]
    """The trainable parameters, in the order of the walk."""
    defaults: Mapping[str, Any]
    """What a group has that no rule touches: lr and weight_decay, in that order."""


def decide(model: nn.Module, config: OptimizerConfig) -> Decisions:
    """Raises ConfigError for anything wrong in the section, and where there is nothing to train."""
    optimizer = registry.resolve(config.type, "optimizer", "optimizer.type")
    registry.check_arguments(optimizer, config.arguments, "optimizer", provided=("params",))
    _check_options(config, optimizer)
    census = take_census(model)
    trainable = [entry for entry in census.entries if entry.requires_grad]
    if not trainable:
        problem = "every parameter is frozen" if census.entries else "no trainable parameters"
        raise ConfigError(
            "model", problem, given=type(model).__name__, allowed="at least one that requires a gradient"
        )
    constructor = _construct(config, census)
    with _blaming(config.constructor):
        verdicts = [(entry, _decided(constructor, entry)) for entry in trainable]
    decisions = Decisions(config, census, constructor, verdicts, _defaults(optimizer, config.arguments))
    if config.paramwise_cfg is not None and not config.paramwise_cfg.bypass_duplicate:
        raise_all(_shared(decisions))
    return decisions


def _construct(config: OptimizerConfig, census: Census) -> Constructor:
    cls = registry.resolve(config.constructor, "constructor", CONSTRUCTOR)
    with _blaming(config.constructor):
        constructor: Constructor = cls(config, census)
    return constructor


def _decided(constructor: Constructor, entry: Entry) -> Verdict:
    verdict = constructor.decide(entry, entry.places[0])
    if not isinstance(verdict, Verdict):
        name = type(constructor).__name__
        problem = f"{name}.decide returned {type(verdict).__name__} for {entry.fqn}"
        raise ConfigError(CONSTRUCTOR, problem, given=verdict, allowed="a distopt.optim.Verdict")
    return verdict


@contextmanager
def _blaming(constructor: str) -> Iterator[None]:
    """What a constructor of the user's raises is said with its line."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        problem = f"raised {describe_error(error)}"
        raise ConfigError(CONSTRUCTOR, problem, given=constructor) from error


def describe(verdict: Verdict) -> str:
    """`head (lr 0.01, weight_decay 0)`."""
    options = ", ".join(f"{name} {value}" for name, value in verdict.options.items())
    return f"{verdict.label} ({options})" if options else verdict.label


def _check_options(config: OptimizerConfig, optimizer: Callable[..., Any]) -> None:
    """Holds what stands in custom keys against the optimizer's signature."""
    parameters = inspect.signature(optimizer).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    options = [*KEY_SETTINGS, *(parameter.name for parameter in parameters if parameter.name != "params")]
    raise_all(
        ConfigError(
            f"{CUSTOM_KEYS}.{key}.{name}",
            "unknown option",
            allowed=options,
            suggestion=nearest(name, options),
        )
        for key, entry in config.paramwise.custom_keys.items()
        for name in entry
        if name not in options
    )


def _defaults(optimizer: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(optimizer).parameters
    signature = {name: parameters[name].default for name in ("lr", "weight_decay") if name in parameters}
    return {name: arguments.get(name, default) for name, default in signature.items()}


def _shared(decisions: Decisions) -> Iterator[ConfigError]:
    """An error for each trainable parameter that the walk meets twice."""
    for entry, _ in decisions.verdicts:
        if sum(place.distinct for place in entry.places) > 1:
            verdicts = ((place.fqn, decisions.constructor.decide(entry, place)) for place in entry.places)
            described = "; ".join(f"{fqn} → {describe(verdict)}" for fqn, verdict in verdicts)
            yield ConfigError(
                "optimizer.paramwise_cfg",
                f"one parameter has several names: {described}",
                allowed="bypass_duplicate: true owns it once, by the verdict on the first name",
            )
