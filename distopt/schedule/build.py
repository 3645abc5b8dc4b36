"""From the YAML's `param_scheduler:` to a schedule over an optimizer's groups."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from distopt.config import SchedulerConfig
from distopt.errors import ConfigError, collecting, nearest, raise_all
from distopt.schedule.lints import lint
from distopt.schedule.plateau import ReduceOnPlateau, Reductions, SlotKey
from distopt.schedule.schedule import Curve, Schedule, Slot, slot_of
from distopt.schedule.types import parse
from distopt.schedule.window import Cfg, Window, make_window

if TYPE_CHECKING:
    import torch


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
    windows = check_schedule(cfgs, steps_per_epoch, max_steps)
    bases: dict[SlotKey, float] = {}
    bounds: list[dict[SlotKey, float]] = []
    for window in windows:
        chosen = dict(_moved(window, optimizer))
        bases.update(chosen)
        bounds.append({slot: _bound(window, optimizer, slot, base) for slot, base in chosen.items()})
    curves: dict[tuple[int, float], int] = {}
    products: dict[tuple[int, ...], int] = {}
    slots = []
    for (index, param), base in bases.items():
        own = [(i, of_entry[index, param]) for i, of_entry in enumerate(bounds) if (index, param) in of_entry]
        product = tuple(curves.setdefault(curve, len(curves)) for curve in own)
        slots.append(Slot(index, param, base, products.setdefault(product, len(products))))
    names = _names(optimizer.param_groups)
    return Schedule(
        optimizer,
        slots,
        [Curve(windows[i], bound) for i, bound in curves],
        list(products),
        [
            Reductions(
                window,
                {slot: bases[slot] for slot in of_entry},
                of_entry,
                {slot: f"{names[slot[0]]}.{slot[1]}" for slot in of_entry},
            )
            for window, of_entry in zip(windows, bounds, strict=True)
            if isinstance(window.shape, ReduceOnPlateau)
        ],
        lint(windows, bounds, bases, names, max_steps),
    )


def check_types(cfgs: Cfg | Sequence[Cfg]) -> None:
    """What can be checked before the length of an epoch is known: types and arguments.

    Raises:
        ConfigError: All that is wrong with them.
    """
    errors: list[ConfigError] = []
    for i, cfg in enumerate(_listed(cfgs)):
        with collecting(errors):
            parse(f"param_scheduler.{i}", cfg)
    raise_all(errors)


def check_schedule(
    cfgs: Cfg | Sequence[Cfg], steps_per_epoch: int | None = None, max_steps: int | None = None
) -> list[Window]:
    """What can be checked before there is an optimizer: types, arguments, and windows, which it returns."""
    return [
        make_window(key, *parse(key, cfg), steps_per_epoch=steps_per_epoch, max_steps=max_steps)
        for key, cfg in ((f"param_scheduler.{i}", cfg) for i, cfg in enumerate(_listed(cfgs)))
    ]


def _listed(cfgs: Cfg | Sequence[Cfg]) -> Sequence[Cfg]:
    return [cfgs] if isinstance(cfgs, Mapping | SchedulerConfig) else cfgs


def _names(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    return [str(group.get("name", index)) for index, group in enumerate(groups)]


def _moved(window: Window, optimizer: torch.optim.Optimizer) -> list[tuple[SlotKey, float]]:
    """The values that an entry moves, with their bases."""
    moved = []
    for index in _chosen_groups(window, _names(optimizer.param_groups)):
        group = optimizer.param_groups[index]
        param, value = slot_of(window.param, group)
        base = _number(value)
        if base is None:
            options = [name for name, value in group.items() if _number(value) is not None]
            problem = f"the optimizer has no {window.param} to move"
            raise ConfigError(f"{window.key}.type", problem, given=window.param, allowed=options)
        moved.append(((index, param), base))
    return moved


def _chosen_groups(window: Window, names: Sequence[str]) -> Sequence[int]:
    if window.groups is None:
        return range(len(names))
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


def _number(value: Any) -> float | None:
    """A finite number, also one in a tensor; None for anything else."""
    if hasattr(value, "item") and value.numel() == 1:
        value = value.item()
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def _bound(window: Window, optimizer: torch.optim.Optimizer, slot: SlotKey, base: float) -> float:
    """`eta_min` as a share of the base: relative to the optimizer's own value, so that ratios hold."""
    argument, (index, param) = window.shape.bound, slot
    given = getattr(window.shape, argument) if argument else None
    if isinstance(given, list):
        if len(given) != len(optimizer.param_groups):
            allowed = f"a number, or one for each of the {len(optimizer.param_groups)} groups"
            raise ConfigError(f"{window.key}.{argument}", "wrong length", given=given, allowed=allowed)
        return given[index] / base if base else 0.0
    if given:
        _, value = slot_of(window.param, optimizer.defaults)
        own = _number(value)
        if not own:
            problem = "relative to nothing"
            allowed = f"eta_min_ratio, since the optimizer's own {param} is {value}"
            if argument != "eta_min":
                allowed = f"a list with one for each group, since the optimizer's own {param} is {value}"
            raise ConfigError(f"{window.key}.{argument}", problem, given=given, allowed=allowed)
        return float(given / own)
    return window.shape.ratio
