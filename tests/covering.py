"""A part of a matrix of tests that tries everything with everything else, if not all at once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TypeVar

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
