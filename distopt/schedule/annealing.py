"""The shapes that go to a value of the option itself: `eta_min`, `eta_max`."""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import accumulate
from typing import Annotated, Literal

from pydantic import Field, model_validator

from distopt.config import RunShare
from distopt.errors import ConfigError
from distopt.schedule.shapes import Length, NotNegative, Positive, Shape, Share


class Annealing(Shape):
    """A way down to `eta_min`, or to `eta_min_ratio` of each group's base; to 0 where neither is given."""

    bound = "eta_min"

    eta_min: NotNegative | list[NotNegative] | None = None
    eta_min_ratio: Share | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Annealing:
        if self.eta_min is not None and self.eta_min_ratio is not None:
            raise ConfigError("eta_min", "given twice", allowed="eta_min or eta_min_ratio, not both")
        return self

    @property
    def ratio(self) -> float:
        return self.eta_min_ratio or 0.0


class CosineAnnealing(Annealing):
    """Half a cosine from 1 over `T_max` (by default the window); beyond T_max it rises again."""

    lengths = ("T_max",)

    T_max: Positive | None = None

    def check(self, key: str, n: float) -> None:
        if self.T_max is None:
            _check_end(key, n, or_else=" or T_max")

    def at(self, k: float, n: float, bound: float) -> float:
        period = self.T_max if self.T_max is not None else n + 1
        return bound + (1 - bound) * (1 + math.cos(math.pi * k / period)) / 2


class Poly(Annealing):
    """A power of what is left of the window."""

    power: Positive = 1.0

    def check(self, key: str, n: float) -> None:
        _check_end(key, n)

    def at(self, k: float, n: float, bound: float) -> float:
        left = max(1 - k / n, 0.0) if n > 0 else 1.0  # the last epoch of a run may be a part of one
        return float(bound + (1 - bound) * left**self.power)


class CosineRestart(Annealing):
    """Half a cosine for each of `periods`, from its weight; after the last its last value stays."""

    lengths = ("periods",)

    periods: Annotated[list[Length], Field(min_length=1)]
    restart_weights: list[NotNegative] = Field(default_factory=lambda: [1.0])

    @model_validator(mode="after")
    def _as_many_weights(self) -> CosineRestart:
        if len(self.restart_weights) != len(self.periods):
            allowed = f"one for each of the {len(self.periods)} periods"
            raise ConfigError("restart_weights", "wrong length", given=self.restart_weights, allowed=allowed)
        return self

    def at(self, k: float, n: float, bound: float) -> float:
        k = min(k, sum(self.periods) - 1)
        i = bisect_right(list(accumulate(self.periods)), k)
        x, period, weight = k - sum(self.periods[:i]), self.periods[i], self.restart_weights[i]
        return bound + (weight - bound) * (1 + math.cos(math.pi * x / period)) / 2


class OneCycle(Shape):
    """Up to `eta_max`, and down to far less than it began with: torch's OneCycleLR, for one option alone.

    It starts at eta_max / `div_factor` and ends at that / `final_div_factor`, whatever the base.
    """

    bound = "eta_max"
    lengths = ("total_steps",)

    eta_max: Positive | list[Positive]
    total_steps: Length | None = None
    pct_start: Share = 0.3
    anneal_strategy: Literal["cos", "linear"] = "cos"
    div_factor: Positive = 25.0
    final_div_factor: Positive = 1e4
    three_phase: bool = False

    def check(self, key: str, n: float) -> None:
        if self.total_steps is None:
            _check_end(key, n, or_else=" or total_steps")

    def at(self, k: float, n: float, bound: float) -> float:
        total = self.total_steps or n + 1
        first = bound / self.div_factor
        last = first / self.final_div_factor
        # Where each phase ends, and at which value.
        phases = [(self.pct_start * total - 1, bound), (total - 1, last)]
        if self.three_phase:
            phases.insert(1, (2 * self.pct_start * total - 2, first))
        k, begin, value = min(k, total - 1), 0.0, first
        for end, goal in phases:
            if k <= end:
                break
            begin, value = end, goal
        share = (k - begin) / (end - begin) if end > begin else 1.0
        if self.anneal_strategy == "cos":
            return goal + (value - goal) / 2 * (1 + math.cos(math.pi * share))
        return value + (goal - value) * share


class WarmupStableDecay(Annealing):
    """Up to 1 over `warmup`, then level, then down over the last `decay` of the window.

    The first step has 1 / warmup, and the last is not quite down, so that none is taken at 0. `sqrt` goes
    down by 1 − √ (Hägele et al. 2024, arXiv:2405.18392).
    """

    lengths = ("warmup", "decay")

    warmup: Annotated[int, Field(ge=0)] | RunShare = 0
    decay: Length | RunShare
    decay_type: Literal["linear", "sqrt", "cosine"] = "linear"
    lo: Share | None = None
    """Another name of eta_min_ratio."""

    @model_validator(mode="after")
    def _one_end(self) -> WarmupStableDecay:
        if self.lo is not None and (self.eta_min is not None or self.eta_min_ratio is not None):
            raise ConfigError("lo", "given twice", allowed="one of lo, eta_min and eta_min_ratio")
        return self

    @property
    def ratio(self) -> float:
        return self.lo if self.lo is not None else super().ratio

    def check(self, key: str, n: float) -> None:
        _check_end(key, n)

    def at(self, k: float, n: float, bound: float) -> float:
        warmup, decay = int(self.warmup), max(int(self.decay), 1)  # a share of a short run may be 0
        if k < warmup:
            return (k + 1) / warmup
        done = max(0.0, k - (n + 1 - decay)) / decay
        if self.decay_type == "linear":
            left = 1 - done
        elif self.decay_type == "sqrt":
            left = 1 - math.sqrt(done)
        else:
            left = (1 + math.cos(math.pi * done)) / 2
        return bound + (1 - bound) * left


def _check_end(key: str, n: float, or_else: str = "") -> None:
    if math.isinf(n):
        raise ConfigError(f"{key}.end", "missing", allowed=f"an end{or_else}, where max_steps is not known")
