"""The shapes of `param_scheduler`: factors on a group's base value, as functions of the place in a window.

`k` is the place since `begin`; `n` = end − begin − 1 is the last place that moves, math.inf for a window
without an end. The formulas are those of MMEngine's schedulers in closed form.
"""

from __future__ import annotations

import math
import sys
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Annotated, ClassVar, Self

from pydantic import Field, field_validator

from distopt.config import Section
from distopt.errors import ConfigError

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Length = Annotated[int, Field(ge=1)]


class Shape(Section):
    """What an entry's `type` names; its fields are the entry's arguments."""

    bound: ClassVar[str | None] = None
    """The argument that is a value of the option itself and no factor, such as `eta_min`."""
    open_ended: ClassVar[bool] = False
    """Whether it goes on where the run may be made longer, rather than end where the run does."""
    lengths: ClassVar[tuple[str, ...]] = ()
    """The arguments that are numbers of steps, or of epochs."""

    @property
    def ratio(self) -> float:
        """The share of the base that `bound` stands for where it is not given itself."""
        return 0.0

    def given_lengths(self) -> Iterator[int | str]:
        """The lengths that are given."""
        for name in self.lengths:
            value = getattr(self, name)
            yield from value if isinstance(value, list) else () if value is None else (value,)

    def converted(self, convert: Callable[[int | str], int]) -> Self:
        """The same with other lengths: in steps, where they were in epochs or shares of the run."""
        given = {name: getattr(self, name) for name in self.lengths if getattr(self, name) is not None}
        return self.model_copy(
            update={
                name: [convert(item) for item in value] if isinstance(value, list) else convert(value)
                for name, value in given.items()
            }
        )

    def check(self, key: str, n: float) -> None:
        """Raises a ConfigError below `key` where the window does not do for this shape."""

    @abstractmethod
    def at(self, k: float, n: float, bound: float) -> float:
        """The factor at place `k`; `bound` is the share of the base that the argument `bound` stands for."""


class Constant(Shape):
    """`factor` inside the window, 1 from its last place on."""

    factor: Share = 1 / 3

    def at(self, k: float, n: float, bound: float) -> float:
        return self.factor if k < n else 1.0


class Linear(Shape):
    """A line from `start_factor` at `begin` to `end_factor` at `end - 1`."""

    start_factor: Share = 1 / 3
    end_factor: Share = 1.0

    def at(self, k: float, n: float, bound: float) -> float:
        share = min(k / n, 1.0) if n > 0 else 0.0
        return self.start_factor + (self.end_factor - self.start_factor) * share


class Geometric(Shape):
    """Times `gamma` again and again; one of more than 1 lets the value grow."""

    gamma: NotNegative = 0.1

    @abstractmethod
    def times(self, k: float) -> float:
        """How often it has been multiplied at place `k`."""

    def check(self, key: str, n: float) -> None:
        if math.isinf(n):
            return
        times = self.times(math.ceil(n))
        if math.isinf(_power(self.gamma, times)):
            largest = math.floor(1e9 * math.exp(math.log(sys.float_info.max) / times)) / 1e9
            problem = f"multiplied {times:,.0f} times in its window, it is beyond all numbers"
            raise ConfigError(f"{key}.gamma", problem, given=self.gamma, allowed=f"at most {largest:.10g}")

    def at(self, k: float, n: float, bound: float) -> float:
        return _power(self.gamma, self.times(k))


def _power(gamma: float, times: float) -> float:
    try:
        return float(gamma**times)
    except OverflowError:
        return math.inf


class Step(Geometric):
    """Times `gamma` every `step_size`."""

    lengths = ("step_size",)

    step_size: Length

    def times(self, k: float) -> float:
        return k // self.step_size


class MultiStep(Geometric):
    """Times `gamma` at each of the `milestones`, which count from `begin`; repeated ones multiply."""

    lengths = ("milestones",)

    milestones: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]

    @field_validator("milestones", mode="after")
    @classmethod
    def _in_order(cls, milestones: list[int]) -> list[int]:
        if any(first > second for first, second in pairwise(milestones)):
            raise ConfigError("", "out of order", given=milestones, allowed=str(sorted(milestones)))
        return milestones

    def times(self, k: float) -> float:
        return bisect_right(self.milestones, k)


class Exponential(Geometric):
    """Times `gamma` at every place."""

    gamma: NotNegative

    def times(self, k: float) -> float:
        return k
