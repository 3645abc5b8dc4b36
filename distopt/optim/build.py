"""From the YAML's `optimizer:` section to a plan, and from a plan to the optimizer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from distopt import registry
from distopt.config import OptimizerConfig, validate
from distopt.errors import ConfigError, nearest, raise_all
from distopt.optim.bind import bind
from distopt.optim.census import Entry, take_census
from distopt.optim.plan import Group, Plan, merge
from distopt.optim.rules import CUSTOM_KEYS, KEY_SETTINGS, Rules, Verdict


def make_plan(model: nn.Module, cfg: Mapping[str, Any] | OptimizerConfig) -> Plan:
    """Decides the groups of `model`: names, options and members. Builds no optimizer, touches no device.

    Args:
        model: Wrapped or not, on any device, meta included.
        cfg: The `optimizer:` section of the YAML, as a mapping.

    Raises:
        ConfigError: For anything wrong in the section, custom keys that match nothing, parameters shared
            without `bypass_duplicate`, or nothing left to train.
    """
    config = _validated(cfg)
    optimizer = registry.resolve(config.type, "optimizer", "optimizer.type")
    registry.check_arguments(optimizer, config.arguments, "optimizer", provided=("params",))
    rules = Rules(config)
    _check_options(rules, optimizer)
    census = take_census(model)
    trainable = [entry for entry in census if entry.requires_grad]
    if not trainable:
        problem = "no trainable parameters" if not census else "every parameter is frozen"
        raise ConfigError(
            "model", problem, given=type(model).__name__, allowed="at least one that requires a gradient"
        )
    warnings = tuple(_check_keys(rules, census, config.unmatched_keys))
    decided = [(entry, rules.decide(entry, entry.places[0])) for entry in trainable]
    notes: tuple[str, ...] = ()
    if config.paramwise_cfg is not None:
        notes = tuple(_check_shared(rules, decided, config.paramwise_cfg.bypass_duplicate))
    return Plan(
        optimizer=config.type,
        groups=merge(decided, _defaults(optimizer, config.arguments)),
        frozen=tuple(entry.fqn for entry in census if not entry.requires_grad),
        warnings=warnings,
        notes=notes,
    )


def build_optimizer(
    model: nn.Module, cfg: Mapping[str, Any] | OptimizerConfig, plan: Plan | None = None
) -> torch.optim.Optimizer:
    """Builds the optimizer over the live parameters of `model`: call it after wrapping.

    Args:
        model: The model as it will be trained.
        cfg: The `optimizer:` section of the YAML, as a mapping.
        plan: What `make_plan` decided on the unwrapped model; made from `model` where not given.

    Returns:
        An instance of the optimizer's class. Each of its `param_groups` has the group's `name` and
        `param_names`, the FQNs in the order of `params`.

    Raises:
        ConfigError: As `make_plan`; or where `model` no longer has the parameters and ties of `plan`.
    """
    config = _validated(cfg)
    plan = plan or make_plan(model, config)
    return _construct(config, bind(plan, model))


def try_optimizer(plan: Plan, cfg: Mapping[str, Any] | OptimizerConfig) -> torch.optim.Optimizer:
    """An optimizer with the groups of `plan` over stand-ins of one element each: a trial of its arguments.

    Raises:
        ConfigError: The optimizer's class refuses its arguments, or the options of a group.
    """
    config = _validated(cfg)
    stand_ins = [torch.zeros([1] * max(len(entry.shape) for entry in group.entries)) for group in plan.groups]
    _construct(config, stand_ins)
    for group, stand_in in zip(plan.groups, stand_ins, strict=True):
        # As arguments, for the class checks only those: what stands in a group it takes as it is.
        _construct(config, [stand_in], tried=group)
    named = zip(plan.groups, stand_ins, strict=True)
    return _construct(config, [{"params": [s], "name": group.name, **group.options} for group, s in named])


def _construct(
    config: OptimizerConfig, params: Sequence[torch.Tensor | dict[str, Any]], tried: Group | None = None
) -> torch.optim.Optimizer:
    optimizer = registry.resolve(config.type, "optimizer", "optimizer.type")
    options = dict(tried.options) if tried else {}
    try:
        built: torch.optim.Optimizer = optimizer(params, **{**config.arguments, **options})
    except Exception as error:  # torch's own classes raise IndexError for `betas: [0.9]`
        of_group = f" for group {tried.name}" if tried else ""
        problem = f"{config.type} refuses its arguments{of_group}: {type(error).__name__}: {error}"
        raise ConfigError("optimizer", problem, given={**config.arguments, **options}) from error
    return built


def _validated(cfg: Mapping[str, Any] | OptimizerConfig) -> OptimizerConfig:
    return cfg if isinstance(cfg, OptimizerConfig) else validate(OptimizerConfig, cfg, key="optimizer")


def _defaults(optimizer: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What a group has that no rule touches: lr and weight_decay, in that order."""
    parameters = inspect.signature(optimizer).parameters
    signature = {name: parameters[name].default for name in ("lr", "weight_decay") if name in parameters}
    return {name: arguments.get(name, default) for name, default in signature.items()}


def _check_options(rules: Rules, optimizer: Callable[..., Any]) -> None:
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
        for key, entry in rules.custom_keys.items()
        for name in entry
        if name not in options
    )


def _check_keys(rules: Rules, census: list[Entry], unmatched: str) -> Iterator[str]:
    """Raises for, or yields a warning about, custom keys that match no parameter or only frozen ones."""
    matched: set[str] = set()
    matched_trainable: set[str] = set()
    for entry in census:
        keys = {key for place in entry.places for key in rules.matching_keys(place)}
        matched |= keys
        if entry.requires_grad:
            matched_trainable |= keys
    errors = [_unmatched(key, census) for key in rules.custom_keys if key not in matched]
    if unmatched == "error":
        raise_all(errors)
    yield from (str(error) for error in errors)
    for key in rules.custom_keys:
        if key in matched - matched_trainable:
            yield f"{CUSTOM_KEYS}.{key}: matches frozen parameters only"


def _unmatched(key: str, census: list[Entry]) -> ConfigError:
    fqns = [place.fqn for entry in census for place in entry.places]
    parts = dict.fromkeys(
        part for fqn in fqns for part in (*fqn.split("."), fqn.rpartition(".")[0], fqn) if part
    )
    return ConfigError(
        f"{CUSTOM_KEYS}.{key}",
        "matches no parameter",
        allowed="a part of a parameter's name; unmatched_keys: warn accepts keys without a match",
        suggestion=nearest(key, parts),
    )


def _check_shared(rules: Rules, decided: list[tuple[Entry, Verdict]], bypass: bool) -> Iterator[str]:
    """Raises for shared parameters, or, where `bypass_duplicate` allows them, yields what it decided."""
    errors = []
    for entry, verdict in decided:
        if not entry.aliases:
            continue
        verdicts = [rules.decide(entry, place) for place in entry.places]
        described = "; ".join(
            f"{place.fqn} → {_describe(verdict)}"
            for place, verdict in zip(entry.places, verdicts, strict=True)
        )
        if bypass:
            if any(dict(other.options) != dict(verdict.options) for other in verdicts):
                yield f"shared parameter, owned once, as {entry.fqn}: {described}"
        elif sum(place.distinct for place in entry.places) > 1:
            errors.append(
                ConfigError(
                    "optimizer.paramwise_cfg",
                    f"one parameter has several names: {described}",
                    allowed="bypass_duplicate: true owns it once, by the verdict on the first name",
                )
            )
    raise_all(errors)


def _describe(verdict: Verdict) -> str:
    options = ", ".join(f"{name} {value}" for name, value in verdict.options.items())
    return f"{verdict.label} ({options})" if options else verdict.label
