"""All that an examination has found, at rank 0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from distopt.launch.doctor.facts import Facts


@dataclass(frozen=True)
class Measured:
    """By one rank."""

    work: float
    """Seconds that a piece of work takes, the same on all ranks."""
    all_reduce: Mapping[str, list[tuple[int, float]]]
    """Backend → bytes and seconds."""
    clocks: list[tuple[int, float, float]] = field(default_factory=list)
    """Rank 0's: first rank of another node, its clock less rank 0's, how far that may be off; in seconds."""
    links: list[tuple[int, float, float]] = field(default_factory=list)
    """Rank 0's: first rank of another node, seconds there and back, bytes a second."""


@dataclass(frozen=True)
class Examination:
    """What is known of all ranks."""

    size: int
    """Of the world."""
    everyone: list[Facts]
    """Of the ranks that have come, in their order."""
    apart: list[int] = field(default_factory=list)
    """Ranks whose work_dir is not rank 0's."""
    cut_off: Mapping[int, Mapping[int, str]] = field(default_factory=dict)
    """First rank of a node → first rank of another that it cannot reach → why."""
    measured: Mapping[int, Measured | str] = field(default_factory=dict)
    """By rank, or what went wrong there; empty where it was known before that no group can be formed."""

    @property
    def missing(self) -> list[int]:
        """Ranks that have not come."""
        return sorted(set(range(self.size)) - {facts.rank for facts in self.everyone})


def bus_bandwidth(count: int, seconds: float, size: int) -> float:
    """Bytes a second through each rank's link, which does not depend on the number of ranks."""
    return count / seconds * 2 * (size - 1) / size
