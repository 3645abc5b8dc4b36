"""The rank that holds up the others, found by what each does alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

_TOO_MUCH: Final = 0.3
"""Of a step's time, beyond the median of all ranks."""
_PATIENCE: Final = 10
"""Logged steps in a row, with the same rank the slowest."""


class Spread:
    """Watches how long each rank takes where it waits for no other, and tells once of each that is slow.

    The time of a whole step says nothing: every rank waits for the slowest.

    Args:
        hosts: By rank.
        parts: Of a step: what `observe` is told the times of.
    """

    def __init__(self, hosts: Sequence[str], parts: Sequence[str]) -> None:
        self._hosts, self._parts = hosts, parts
        self._suspect, self._seen = -1, 0
        self._told: set[int] = set()

    def observe(self, times: NDArray[np.float64], step_time: float) -> dict[str, float]:
        """Takes note of one step.

        Args:
            times: Seconds, of shape (ranks, parts).
            step_time: Seconds that the whole step takes.

        Returns:
            The times of the slowest and the fastest rank, in seconds, and which they are.
        """
        totals = times.sum(1)
        slowest, fastest = int(np.argmax(totals)), int(np.argmin(totals))
        if totals[slowest] - _median(totals) < _TOO_MUCH * step_time:
            self._suspect = -1
        elif slowest == self._suspect:
            self._seen += 1
        else:
            self._suspect, self._seen = slowest, 1
        if slowest == self._suspect and self._seen == _PATIENCE and slowest not in self._told:
            self._told.add(slowest)  # one that is slow at most times would be told of for ever
            self._tell(slowest, times)
        return {
            "slowest": totals[slowest].item(),
            "fastest": totals[fastest].item(),
            "slowest_rank": slowest,
            "fastest_rank": fastest,
        }

    def _tell(self, rank: int, times: NDArray[np.float64]) -> None:
        own, usual = times[rank], _median(times)
        worst = int((own - usual).argmax())
        logger.warning(
            "rank %d (%s) holds up the others: %s takes it %.3g s a step, and %.3g s the median rank",
            rank,
            self._hosts[rank],
            self._parts[worst],
            own[worst],
            usual[worst],
        )


def _median(values: NDArray[np.float64]) -> Any:
    """Of ranks, the first dimension; of an even number the smaller one, since that of two is the other's."""
    return np.sort(values, axis=0)[(len(values) - 1) // 2]
