"""Words for numbers, and for many names."""

from __future__ import annotations

from collections.abc import Sequence

from distopt.errors import listed


def counted(number: int, noun: str) -> str:
    """`1 rank`, `2 ranks`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def fitting(names: Sequence[str], width: int) -> str:
    """`a, b and 12 more`: as many names as fit, but one at least."""
    texts = (listed(names, most) for most in range(len(names), 0, -1))
    return next((text for text in texts if len(text) <= width), listed(names, 1))
