"""The shapes of `param_scheduler`: factors on a group's base value, as functions of the place in a window.

`k` is the place since `begin`; `n` = end − begin − 1 is the last place that moves, math.inf for a window
without an end. The formulas are those of MMEngine's schedulers in closed form.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Self

from distopt.errors import ConfigError


class Shape(ABC):
    """What an entry's `type` names; the fields of the dataclass are the entry's arguments."""

    def scaled(self, steps_per_epoch: int) -> Self:
        """The same with its lengths in steps, where they were in epochs (`convert_to_iter_based`)."""
        return self

    @abstractmethod
    def check(self, key: str, n: float) -> None:
        """Raises a ConfigError at `key` for arguments that make no sense."""

    @abstractmethod
    def at(self, k: float, n: float, low: float) -> float:
        """The factor at place `k`; `low` is the share of the base that `eta_min` stands for."""


@dataclass(frozen=True)
class Constant(Shape):
    """`factor` inside the window, 1 from its last place on."""

    factor: float = 1 / 3

    def check(self, key: str, n: float) -> None:
        _check_share(f"{key}.factor", self.factor)

    def at(self, k: float, n: float, low: float) -> float:
        return self.factor if k < n else 1.0


@dataclass(frozen=True)
class Linear(Shape):
    """A line from `start_factor` at `begin` to `end_factor` at `end - 1`."""

    start_factor: float = 1 / 3
    end_factor: float = 1.0

    def check(self, key: str, n: float) -> None:
        _check_share(f"{key}.start_factor", self.start_factor)
        _check_share(f"{key}.end_factor", self.end_factor)

    def at(self, k: float, n: float, low: float) -> float:
        share = min(k / n, 1.0) if n > 0 else 0.0
        return self.start_factor + (self.end_factor - self.start_factor) * share


@dataclass(frozen=True)
class CosineAnnealing(Shape):
    """Half a cosine from 1 to `low` over `T_max` (by default the window); beyond T_max it rises again."""

    T_max: float | None = None
    eta_min: float | list[float] | None = None
    eta_min_ratio: float | None = None

    def scaled(self, steps_per_epoch: int) -> CosineAnnealing:
        return self if self.T_max is None else replace(self, T_max=self.T_max * steps_per_epoch)

    def check(self, key: str, n: float) -> None:
        if self.T_max is None and math.isinf(n):
            raise ConfigError(
                f"{key}.end", "missing", allowed="an end or T_max, where max_steps is not known"
            )
        if self.T_max is not None and not self.T_max > 0:
            raise ConfigError(f"{key}.T_max", "out of range", given=self.T_max, allowed="more than 0")
        if any(low < 0 for low in (self.eta_min if isinstance(self.eta_min, list) else [self.eta_min or 0])):
            raise ConfigError(f"{key}.eta_min", "out of range", given=self.eta_min, allowed="0 or more")
        if self.eta_min_ratio is not None:
            _check_share(f"{key}.eta_min_ratio", self.eta_min_ratio)

    def at(self, k: float, n: float, low: float) -> float:
        period = self.T_max if self.T_max is not None else n + 1
        return low + (1 - low) * (1 + math.cos(math.pi * k / period)) / 2


SHAPES: dict[str, type[Shape]] = {
    "Constant": Constant,
    "Linear": Linear,
    "CosineAnnealing": CosineAnnealing,
}


def arguments_of(shape: type[Shape]) -> list[str]:
    return [field.name for field in fields(shape)]  # type: ignore[arg-type]


def _check_share(key: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ConfigError(key, "out of range", given=value, allowed="a number from 0 to 1")
