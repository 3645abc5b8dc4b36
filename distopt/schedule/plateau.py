"""Lower values where a metric no longer improves: the one entry of `param_scheduler` that has a state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from distopt.errors import ConfigError, nearest
from distopt.schedule.shapes import NotNegative, Shape
from distopt.schedule.window import Window

SlotKey = tuple[int, str]
"""Index of the group, name of the option."""


class ReduceOnPlateau(Shape):
    """Times `factor` where `monitor` has not improved in more than `patience` evaluations."""

    bound = "min_value"
    open_ended = True

    monitor: Annotated[str, Field(min_length=1)] = "loss"
    rule: Literal["less", "greater"] = "less"
    factor: Annotated[float, Field(ge=0, lt=1)] = 0.1
    patience: Annotated[int, Field(ge=0)] = 10
    threshold: NotNegative = 1e-4
    threshold_rule: Literal["rel", "abs"] = "rel"
    cooldown: Annotated[int, Field(ge=0)] = 0
    min_value: NotNegative | list[NotNegative] = 0.0
    eps: NotNegative = 1e-8

    def at(self, k: float, n: float, bound: float) -> float:
        return 1.0  # nothing by itself: see Reductions

    def improves(self, value: float, best: float | None) -> bool:
        """Whether `value` is better than `best` by more than the threshold."""
        sign = 1 if self.rule == "greater" else -1
        if best is None:
            return sign * value > -math.inf  # anything but NaN, and the worst there is
        if self.threshold_rule == "rel":
            goal = best * (1 + sign * self.threshold)
        else:
            goal = best + sign * self.threshold
        return value > goal if self.rule == "greater" else value < goal


class Reductions:
    """What an entry of type ReduceOnPlateau has done so far.

    Args:
        window: The entry.
        bases: The base of each value that it lowers.
        bounds: The share of its base below which each is not lowered.
        names: What each is called in the state: `head.lr`.
    """

    def __init__(
        self,
        window: Window,
        bases: Mapping[SlotKey, float],
        bounds: Mapping[SlotKey, float],
        names: Mapping[SlotKey, str],
    ) -> None:
        assert isinstance(window.shape, ReduceOnPlateau)
        self.window, self.rule = window, window.shape
        self._bases, self._bounds, self._names = bases, bounds, names
        self.factors = dict.fromkeys(bases, 1.0)
        self._best: float | None = None
        self._bad = 0
        self._cooldown = 0

    def observe(self, metrics: Mapping[str, float], done: int) -> None:
        """Takes an evaluation after `done` optimizer steps into account.

        Raises:
            ConfigError: `monitor` is not among `metrics`.
        """
        self.check(metrics)
        if not self.window.begin <= done // self.window.clock < self.window.end:
            return
        value = float(metrics[self.rule.monitor])
        if self.rule.improves(value, self._best):
            self._best, self._bad = value, 0
        else:
            self._bad += 1
        if self._cooldown > 0:
            self._cooldown, self._bad = self._cooldown - 1, 0
        if self._bad > self.rule.patience:
            self._lower()
            self._cooldown, self._bad = self.rule.cooldown, 0

    def check(self, metrics: Mapping[str, Any]) -> None:
        """Raises ConfigError where evaluation does not produce what is monitored."""
        if self.rule.monitor not in metrics:
            raise ConfigError(
                f"{self.window.key}.monitor",
                "evaluation does not produce this metric",
                given=self.rule.monitor,
                allowed=list(metrics) or "nothing: there is no evaluation (eval.every)",
                suggestion=nearest(self.rule.monitor, metrics),
            )

    def state_dict(self) -> dict[str, Any]:
        factors = {self._names[slot]: factor for slot, factor in self.factors.items()}
        return {"best": self._best, "bad": self._bad, "cooldown": self._cooldown, "factors": factors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up the state of the groups that are still there."""
        self._best, self._bad, self._cooldown = state["best"], state["bad"], state["cooldown"]
        for slot, name in self._names.items():
            self.factors[slot] = state["factors"].get(name, 1.0)

    def _lower(self) -> None:
        for slot, factor in self.factors.items():
            lowered = max(factor * self.rule.factor, self._bounds[slot])
            if self._bases[slot] * (factor - lowered) > self.rule.eps:
                self.factors[slot] = lowered
