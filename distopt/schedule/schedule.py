"""The schedule of a run: sets every group's values for a step, whichever step was asked for before."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distopt.schedule.shapes import Shape

if TYPE_CHECKING:
    import torch

SlotKey = tuple[int, str]
"""Index of the group, name of the option."""


@dataclass(frozen=True)
class Slot:
    """One value that moves: `param` of one of the optimizer's groups."""

    optimizer: torch.optim.Optimizer
    index: int
    param: str
    base: float

    def set(self, value: float) -> None:
        # Looked up anew each time: `load_state_dict` replaces the groups.
        group = self.optimizer.param_groups[self.index]
        group[self.param] = (value, *group["betas"][1:]) if self.param == "betas" else value


@dataclass(frozen=True)
class Entry:
    """One entry of `param_scheduler`, resolved against the groups it moves."""

    shape: Shape
    clock: int
    """Steps per tick: 1, or steps_per_epoch for an entry by epoch."""
    begin: float
    end: float
    """In ticks; math.inf where the window has no end."""
    lows: Mapping[SlotKey, float]
    """Slot → the share of its base that `eta_min` stands for (0 where there is none)."""

    def factors(self, step: int) -> dict[SlotKey, float]:
        """Slot → factor for the 0-based optimizer step `step`."""
        tick = step // self.clock
        if tick < self.begin:
            return {}
        k = min(tick, math.ceil(self.end) - 1 if math.isfinite(self.end) else math.inf) - self.begin
        n = self.end - self.begin - 1
        by_low = {low: self.shape.at(k, n, low) for low in set(self.lows.values())}
        return {slot: by_low[low] for slot, low in self.lows.items()}


class Schedule:
    """Values of every group as pure functions of the step: base × the product of all entries' factors.

    Resuming, a changed horizon and asking in any order need no care, since there is no state.
    """

    def __init__(self, slots: Mapping[SlotKey, Slot], entries: Sequence[Entry]) -> None:
        self._slots = slots
        self._entries = entries

    def apply(self, step: int) -> None:
        """Sets the values that the 0-based optimizer step `step` is to use in the optimizer's groups."""
        values = {key: slot.base for key, slot in self._slots.items()}
        for entry in self._entries:
            for key, factor in entry.factors(step).items():
                values[key] *= factor
        for key, value in values.items():
            self._slots[key].set(value)
