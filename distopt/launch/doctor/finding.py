"""What is said about ranks, and how much it matters."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Weight(IntEnum):
    """The less, the more important."""

    FAULT = 0
    """A run cannot start or go on like this."""
    ODD = 1
    """Probably not meant."""
    NOTE = 2
    """Good to know; all may be well."""


@dataclass(frozen=True)
class Finding:
    """One line."""

    weight: Weight
    text: str
    where: str = "all"
    """Nodes or ranks, as `Places` names them."""
