"""From the YAML's `param_scheduler:` to a schedule over an optimizer's groups."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from distopt.config import SchedulerConfig, validate
from distopt.errors import ConfigError, collecting, nearest, raise_all
from distopt.schedule.schedule import Entry, Schedule, Slot, SlotKey
from distopt.schedule.shapes import SHAPES, Shape, arguments_of

if TYPE_CHECKING:
    import torch

_SUFFIXES = ("LR", "Momentum", "ParamScheduler")
TYPES = [shape + suffix for shape in SHAPES for suffix in _SUFFIXES]

Cfg = Mapping[str, Any] | SchedulerConfig


@dataclass(frozen=True)
class Window:
    """An entry without its groups: what can be said before there is an optimizer."""

    key: str
    param: str
    """`lr`, `momentum` (which may mean betas[0]), or any option of the optimizer."""
    shape: Shape
    clock: int
    begin: float
    end: float
    groups: Sequence[str] | None


def build_schedule(
    optimizer: torch.optim.Optimizer,
    cfgs: Cfg | Sequence[Cfg],
    steps_per_epoch: int | None = None,
    max_steps: int | None = None,
) -> Schedule:
    """Builds the schedule of `optimizer`'s groups. Their base values are read now, and never again.

    Args:
        optimizer: Freshly bound, before a resume: its groups hold the config's own values.
        cfgs: The YAML's `param_scheduler:` list; one mapping will do.
        steps_per_epoch: Optimizer steps; needed by entries with `by_epoch: true`.
        max_steps: The horizon of the run, where an entry's window ends by default.

    Raises:
        ConfigError: For anything wrong in an entry.
    """
    slots: dict[SlotKey, Slot] = {}
    entries = [_bind(window, optimizer, slots) for window in check_schedule(cfgs, steps_per_epoch, max_steps)]
    return Schedule(slots, entries)


def check_types(cfgs: Cfg | Sequence[Cfg]) -> None:
    """What can be checked before the length of an epoch is known: types and arguments.

    Raises:
        ConfigError: All that is wrong with them.
    """
    errors: list[ConfigError] = []
    for i, cfg in enumerate(_listed(cfgs)):
        with collecting(errors):
            _parse(f"param_scheduler.{i}", cfg)
    raise_all(errors)


def check_schedule(
    cfgs: Cfg | Sequence[Cfg], steps_per_epoch: int | None = None, max_steps: int | None = None
) -> list[Window]:
    """What can be checked before there is an optimizer: types, arguments, and windows, which it returns."""
    return [
        _window(f"param_scheduler.{i}", cfg, steps_per_epoch, max_steps)
        for i, cfg in enumerate(_listed(cfgs))
    ]


def _listed(cfgs: Cfg | Sequence[Cfg]) -> Sequence[Cfg]:
    return cfgs if isinstance(cfgs, Sequence) else [cfgs]


def _parse(key: str, cfg: Cfg) -> tuple[SchedulerConfig, str, Shape]:
    """The entry, the option that it moves, and its shape, in the units in which it was given."""
    config = cfg if isinstance(cfg, SchedulerConfig) else validate(SchedulerConfig, cfg, key=key)
    shape, suffix = _split_type(key, config.type)
    arguments = dict(config.arguments)
    param = {"LR": "lr", "Momentum": "momentum"}.get(suffix) or arguments.pop("param_name", None)
    if param is None:
        allowed = "the optimizer option to move, such as weight_decay"
        raise ConfigError(f"{key}.param_name", "missing", allowed=allowed)
    return config, param, _make_shape(key, shape, arguments)


def _window(key: str, cfg: Cfg, steps_per_epoch: int | None, max_steps: int | None) -> Window:
    config, param, shape = _parse(key, cfg)
    begin, end = float(config.begin), math.inf if config.end is None else float(config.end)
    clock = 1
    if config.by_epoch:
        if steps_per_epoch is None:
            problem = "the length of an epoch is not known"
            raise ConfigError(f"{key}.by_epoch", problem, given=True, allowed="by_epoch: false")
        if config.convert_to_iter_based:
            begin, end, shape = begin * steps_per_epoch, end * steps_per_epoch, shape.scaled(steps_per_epoch)
        else:
            clock = steps_per_epoch
    if math.isinf(end) and max_steps is not None:
        # A run that is cut short before `begin` (a trial of few steps) is none of the config's mistakes.
        end = max(max_steps / clock, begin + 1)
    shape.check(key, end - begin - 1)
    return Window(key, param, shape, clock, begin, end, config.groups)


def _split_type(key: str, name: str) -> tuple[str, str]:
    for suffix in _SUFFIXES:
        shape = name.removesuffix(suffix)
        if shape != name and shape in SHAPES:
            return shape, suffix
    raise ConfigError(
        f"{key}.type", "unknown type", given=name, allowed=TYPES, suggestion=nearest(name, TYPES)
    )


def _make_shape(key: str, name: str, arguments: Mapping[str, Any]) -> Shape:
    cls = SHAPES[name]
    fields = arguments_of(cls)
    errors = [
        ConfigError(
            f"{key}.{argument}", "unknown argument", allowed=fields, suggestion=nearest(argument, fields)
        )
        for argument in arguments
        if argument not in fields
    ]
    errors += [
        ConfigError(f"{key}.{argument}", "not a number", given=value, allowed="a finite number")
        for argument, value in arguments.items()
        if argument in fields and not _is_number(value) and not (argument == "eta_min" and _is_numbers(value))
    ]
    if {"eta_min", "eta_min_ratio"} <= arguments.keys():
        errors.append(
            ConfigError(f"{key}.eta_min", "given twice", allowed="eta_min or eta_min_ratio, not both")
        )
    raise_all(errors)
    return cls(**arguments)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_numbers(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_number, value))


def _bind(window: Window, optimizer: torch.optim.Optimizer, slots: dict[SlotKey, Slot]) -> Entry:
    """Resolves the groups that an entry moves; `slots` collects them over all entries."""
    chosen = list(_chosen_groups(window, optimizer.param_groups))
    lows = {}
    for index in chosen:
        group = optimizer.param_groups[index]
        param, base = _option(window.param, group)
        if not _is_number(base):
            options = [name for name, value in group.items() if _is_number(value)]
            problem = f"the optimizer has no {window.param} to move"
            raise ConfigError(f"{window.key}.type", problem, given=window.param, allowed=options)
        slot = slots.setdefault((index, param), Slot(optimizer, index, param, float(base)))
        lows[index, param] = _low(window, optimizer, index, slot)
    return Entry(window.shape, window.clock, window.begin, window.end, lows)


def _chosen_groups(window: Window, groups: Sequence[Mapping[str, Any]]) -> Iterable[int]:
    names = [str(group.get("name", index)) for index, group in enumerate(groups)]
    if window.groups is None:
        return range(len(groups))
    for i, pattern in enumerate(window.groups):
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(
                f"{window.key}.groups.{i}",
                "matches no group",
                given=pattern,
                allowed=names,
                suggestion=nearest(pattern, names),
            )
    return [i for i, name in enumerate(names) if any(fnmatchcase(name, pattern) for pattern in window.groups)]


def _option(param: str, group: Mapping[str, Any]) -> tuple[str, Any]:
    """The option that an entry for `param` moves in this group, and its value."""
    if param == "momentum" and "momentum" not in group and group.get("betas"):
        return "betas", group["betas"][0]
    return param, group.get(param)


def _low(window: Window, optimizer: torch.optim.Optimizer, index: int, slot: Slot) -> float:
    """`eta_min` as a share of the base: relative to the optimizer's own value, so that ratios hold."""
    eta_min = getattr(window.shape, "eta_min", None)
    if isinstance(eta_min, list):
        if len(eta_min) != len(optimizer.param_groups):
            allowed = f"a number, or one for each of the {len(optimizer.param_groups)} groups"
            raise ConfigError(f"{window.key}.eta_min", "wrong length", given=eta_min, allowed=allowed)
        return eta_min[index] / slot.base if slot.base else 0.0
    if eta_min:
        _, own = _option(window.param, optimizer.defaults)
        if not own:
            allowed = f"eta_min_ratio, since the optimizer's own {slot.param} is {own}"
            raise ConfigError(f"{window.key}.eta_min", "relative to nothing", given=eta_min, allowed=allowed)
        return float(eta_min / own)
    return getattr(window.shape, "eta_min_ratio", None) or 0.0
