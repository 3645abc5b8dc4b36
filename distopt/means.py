"""Means over all items of all ranks, wherever the items were counted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distopt import comm
from distopt.errors import ConfigError


class Reduced(NamedTuple):
    """What all ranks have measured together."""

    values: dict[str, float]
    """Name → mean; no number where nothing was counted."""
    weight: float
    """How many items."""
    facts: NDArray[np.float64]
    """What each rank had to say beside them, of shape (ranks, facts)."""


class Means:
    """Collects means of single batches, each with its weight; never waits for the device until `reduce`.

    Args:
        device: This rank's own.
        names: Of what is going to be measured, where it is known; else the first batch's.
    """

    def __init__(self, device: torch.device, names: Iterable[str] = ()) -> None:
        self._device = device
        self._names = frozenset(names)
        self._sums: dict[str, Any] = {}
        self._weight: Any = 0.0

    def add(self, values: Mapping[str, Tensor | float], weight: Tensor | float) -> None:
        """Adds what was measured on one batch.

        Args:
            values: Name → mean over the batch's items; the same names with every call.
            weight: How many items. Where it is 0 the values count for nothing, even if they are no numbers.

        Raises:
            ConfigError: Other names than before; ranks that differ in them would wait for each other.
        """
        self._names = self._names or frozenset(values)
        if values.keys() != self._names:
            changed = ", ".join(sorted(values.keys() ^ self._names))
            raise ConfigError("model", "returns some of its scalars only at times", given=changed)
        weights = torch.as_tensor(weight, dtype=torch.float64, device=self._device)
        for name, value in values.items():
            term = torch.as_tensor(value, device=self._device).detach() * weights
            self._sums[name] = self._sums.get(name, 0.0) + torch.where(weights > 0, term, 0.0)
        self._weight = self._weight + weights

    def reduce(self, *facts: float) -> Reduced:
        """The means over all ranks, and every rank's `facts`, in one collective."""
        everyones = comm.gather_numbers([self._weight, *self._sums.values(), *facts], self._device)
        weight, *sums = everyones[:, : 1 + len(self._sums)].sum(0).tolist()
        means = (value / weight if weight else float("nan") for value in sums)
        return Reduced(dict(zip(self._sums, means, strict=True)), weight, everyones[:, 1 + len(sums) :])

    @property
    def names(self) -> frozenset[str]:
        return self._names
