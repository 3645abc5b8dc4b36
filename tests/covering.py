"""Parts of a matrix: what tries everything with everything else, and what `make test` has no time for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import combinations
from typing import Any, TypeVar

import pytest

Cell = TypeVar("Cell", bound=tuple)


def covering(cells: Sequence[Cell]) -> list[Cell]:
    """Some cells, such that each pair of values of two axes is in one: greedily, the best cell first."""

    def pairs(cell: Cell) -> set[tuple]:
        return {(i, cell[i], j, cell[j]) for i, j in combinations(range(len(cell)), 2)}

    uncovered = set().union(*map(pairs, cells))
    chosen = []
    while uncovered:
        best = max(cells, key=lambda cell: len(pairs(cell) & uncovered))
        uncovered -= pairs(best)
        chosen.append(best)
    return chosen


def left_to_system(cells: Iterable[Any], but: Collection[Any]) -> list[Any]:
    """Parameters for pytest: all but some are left to `make test-system`."""
    return [
        pytest.param(
            *(cell if isinstance(cell, tuple) else (cell,)), marks=() if cell in but else pytest.mark.system
        )
        for cell in cells
    ]
