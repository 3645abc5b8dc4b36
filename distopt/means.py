"""Means over all items of all ranks, wherever the items were counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from distopt import comm
from distopt.errors import ConfigError


class Means:
    """Collects means of single batches, each with its weight; never waits for the device until `reduce`.

    Args:
        device: This rank's own.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[str, Any] = {}
        self._weight: Any = 0.0

    def add(self, values: Mapping[str, Tensor | float], weight: Tensor | float) -> None:
        """Adds what was measured on one batch.

        Args:
            values: Name → mean over the batch's items; the same names with every call.
            weight: How many items. Where it is 0 the values count for nothing, even if they are no numbers.

        Raises:
            ConfigError: Other names than with the first call.
        """
        if self._sums and values.keys() != self._sums.keys():
            changed = ", ".join(sorted(values.keys() ^ self._sums.keys()))
            raise ConfigError("model", "returns some of its scalars only at times", given=changed)
        weights = torch.as_tensor(weight, dtype=torch.float64, device=self._device)
        for name, value in values.items():
            term = torch.as_tensor(value, device=self._device).detach() * weights
            self._sums[name] = self._sums.get(name, 0.0) + torch.where(weights > 0, term, 0.0)
        self._weight = self._weight + weights

    def reduce(self, *facts: float) -> tuple[dict[str, float], list[float]]:
        """The means over all ranks, and the sum of each of `facts`, in one collective."""
        packed = comm.sum_over_ranks([self._weight, *self._sums.values(), *facts], self._device)
        weight, *sums = packed[: 1 + len(self._sums)]
        means = {
            name: value / weight if weight else float("nan")
            for name, value in zip(self._sums, sums, strict=True)
        }
        return means, packed[1 + len(self._sums) :]

    @property
    def names(self) -> list[str]:
        return list(self._sums)
