"""An entry of `param_scheduler` and the window of the run in which it acts, before there is an optimizer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

from distopt.config import SchedulerConfig
from distopt.errors import ConfigError
from distopt.schedule.shapes import Shape

Cfg = Mapping[str, Any] | SchedulerConfig


@dataclass(frozen=True)
class Window:
    """An entry without its groups. Times are in ticks: steps, or epochs for an entry by epoch."""

    key: str
    param: str
    """`lr`, `momentum` (which may mean betas[0]), or any option of the optimizer."""
    shape: Shape
    clock: int
    """Steps per tick."""
    begin: int
    end: float
    """math.inf where there is none."""
    groups: Sequence[str] | None
    """Patterns of group names; None for all groups."""

    @property
    def steps(self) -> tuple[int, float]:
        """From which 0-based optimizer step, and before which, it moves."""
        return self.begin * self.clock, self.end * self.clock

    @property
    def is_empty(self) -> bool:
        """A share of a short run, or a part of a short epoch, may be no step at all."""
        return self.end == self.begin

    def factor(self, step: int, bound: float) -> float:
        """For the 0-based optimizer step `step`; `bound` as in `Shape.at`."""
        tick = step // self.clock
        if tick < self.begin or self.is_empty:
            return 1.0
        last = math.ceil(self.end) - 1 if math.isfinite(self.end) else tick
        return self.shape.at(min(tick, last) - self.begin, self.end - self.begin - 1, bound)


def check_times(key: str, config: SchedulerConfig, shape: Shape) -> None:
    """Raises a ConfigError where `begin` or `end` is a part of a step, or of an epoch left whole."""
    if config.convert_to_iter_based or (config.by_epoch and _has_shares(config, shape)):
        return  # they become steps, and are rounded down
    for name, time in (("begin", config.begin), ("end", config.end)):
        if isinstance(time, float):
            allowed = "a whole number of steps"
            if config.by_epoch:
                allowed = "a whole number of epochs; or convert_to_iter_based: true"
            raise ConfigError(f"{key}.{name}", "is not whole", given=time, allowed=allowed)


def make_window(
    key: str,
    config: SchedulerConfig,
    param: str,
    shape: Shape,
    *,
    steps_per_epoch: int | None,
    max_steps: int | None,
) -> Window:
    """Resolves an entry's times.

    Raises:
        ConfigError: It is by epoch, or a share of the run, and the length of that is not known; or the
            window has no end and needs one.
    """
    if config.by_epoch and not config.convert_to_iter_based and not _has_shares(config, shape):
        clock = _known(key, steps_per_epoch)
        begin, end = config.begin, config.end
    else:
        clock = 1
        to_steps = partial(
            _to_steps, key, steps_per_epoch=steps_per_epoch if config.by_epoch else 1, max_steps=max_steps
        )
        begin, end = to_steps(config.begin), None if config.end is None else to_steps(config.end)
        shape = shape.converted(to_steps)
        if end is not None and isinstance(config.end, str):
            end = max(end, begin)  # a short run is none of the config's mistakes
    assert isinstance(begin, int)
    assert end is None or isinstance(end, int)
    if end is not None and end < begin:
        raise ConfigError(f"{key}.end", f"is not after begin ({begin})", given=config.end)
    last = math.inf if end is None else float(end)
    if end is None and max_steps is not None and not shape.open_ended:
        # A run that is cut short before `begin` (a trial of few steps) is no mistake either.
        last = max(max_steps / clock, begin + 1)
    shape.check(key, last - begin - 1)
    return Window(key, param, shape, clock, begin, last, config.groups)


def _has_shares(config: SchedulerConfig, shape: Shape) -> bool:
    return any(isinstance(length, str) for length in (config.begin, config.end, *shape.given_lengths()))


def _to_steps(key: str, length: float | str, *, steps_per_epoch: int | None, max_steps: int | None) -> int:
    """A number of epochs (or of steps, with `steps_per_epoch` 1) or a share of the run, rounded down."""
    if not isinstance(length, str):
        return int(length * _known(key, steps_per_epoch)) if length else 0
    if max_steps is None:
        problem = "a share of a run whose length is not known"
        raise ConfigError(key, problem, given=length, allowed="a number of steps; or max_steps")
    return math.floor(max_steps * Fraction(length.removesuffix("%")) / 100)


def _known(key: str, steps_per_epoch: int | None) -> int:
    if steps_per_epoch is None:
        problem = "the length of an epoch is not known"
        raise ConfigError(f"{key}.by_epoch", problem, given=True, allowed="by_epoch: false")
    return steps_per_epoch
