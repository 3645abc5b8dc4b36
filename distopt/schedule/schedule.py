"""The schedule of a run: sets every group's values for a step, whichever step was asked for before."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from distopt.schedule.plateau import Reductions
from distopt.schedule.window import Window

if TYPE_CHECKING:
    import torch


class Slot(NamedTuple):
    """One value that moves: `param` of one of the optimizer's groups."""

    group: int
    """Its index."""
    param: str
    base: float
    product: int
    """The place of its factor among the schedule's products."""


@dataclass(frozen=True)
class Curve:
    """An entry's factor for all values with the same bound."""

    window: Window
    bound: float
    """The share of the base that `eta_min` stands for."""


class Schedule:
    """Values of every group as pure functions of the step: base × the product of all entries' factors.

    Resuming, a changed horizon and asking in any order need no care, since there is no state but that of
    plateau entries.

    Args:
        optimizer: Whose groups it sets.
        slots: What moves.
        curves: The factors there are.
        products: Which of the curves multiply; slots refer to them.
        reductions: The plateau entries.
        warnings: What is probably not meant.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        slots: Sequence[Slot],
        curves: Sequence[Curve],
        products: Sequence[Sequence[int]],
        reductions: Sequence[Reductions],
        warnings: tuple[str, ...] = (),
    ) -> None:
        self._optimizer = optimizer
        self._slots, self._curves, self._products = slots, curves, products
        self._reductions = reductions
        self._step = 0
        self.warnings = warnings

    @property
    def windows(self) -> list[Window]:
        """The entries that it is made of."""
        return list({curve.window.key: curve.window for curve in self._curves}.values())

    def apply(self, step: int) -> None:
        """Sets the values that the 0-based optimizer step `step` is to use in the optimizer's groups."""
        self._step = step
        factors = [curve.window.factor(step, curve.bound) for curve in self._curves]
        products = [math.prod([factors[i] for i in product]) for product in self._products]
        groups = self._optimizer.param_groups  # looked up anew each time: `load_state_dict` replaces them
        for index, param, base, product in self._slots:
            value = base * products[product]
            for reductions in self._reductions:
                value *= reductions.factors.get((index, param), 1.0)
            _set(groups[index], param, value)

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Tells the plateau entries of an evaluation after the step last applied.

        Raises:
            ConfigError: What one of them monitors is not among `metrics`.
        """
        for reductions in self._reductions:
            reductions.observe(metrics, done=self._step + 1)

    def check_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Raises ConfigError where a plateau entry monitors what is not among `metrics`."""
        for reductions in self._reductions:
            reductions.check(metrics)

    def state_dict(self) -> dict[str, Any]:
        """Plain data: `{"lr by accuracy": {"best": 0.3, …}}`. Empty without plateau entries."""
        return {name: reductions.state_dict() for name, reductions in self._by_name()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` gave, of the entries that are still there."""
        for name, reductions in self._by_name():
            if name in state:
                reductions.load_state_dict(state[name])

    def _by_name(self) -> Iterator[tuple[str, Reductions]]:
        """The plateau entries by what they do, since the place in the list may have changed on a resume."""
        seen: Counter[str] = Counter()
        for reductions in self._reductions:
            name = f"{reductions.window.param} by {reductions.rule.monitor}"
            seen[name] += 1
            yield name if seen[name] == 1 else f"{name} {seen[name]}", reductions


def _set(group: dict[str, Any], param: str, value: float) -> None:
    old = group[param]
    if type(old) is float:
        group[param] = value
    elif param == "betas":
        first = _filled(old[0], value)
        group[param] = (first, *old[1:])
    else:
        group[param] = _filled(old, value)


def _filled(old: Any, value: float) -> Any:
    """`value`; in place where it was a tensor, which a CUDA graph reads where it has always been."""
    return old.fill_(value) if hasattr(old, "fill_") else value


def slot_of(param: str, group: Mapping[str, Any]) -> tuple[str, Any]:
    """The option that an entry for `param` moves in this group, and its value."""
    if param == "momentum" and "momentum" not in group and group.get("betas"):
        return "betas", group["betas"][0]
    return param, group.get(param)
