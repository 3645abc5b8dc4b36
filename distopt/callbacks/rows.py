"""What callbacks put into a row, as what can be recorded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from distopt.errors import ConfigError

ALLOWED = "numbers, text, lists of these, and mappings of text to numbers"


def make_plain(row: dict[str, Any]) -> None:
    """Turns what is one number, such as a 0-dimensional tensor, into a number of Python's.

    Raises:
        ConfigError: Something else that cannot be recorded; its key is for the caller to add.
    """
    for name, value in row.items():
        if isinstance(value, Mapping):
            row[name] = {key: _number(item, f"{name}.{key}") for key, item in value.items()}
        else:
            row[name] = _plain(value, name)


def _number(value: Any, name: str) -> Any:
    """A number; or None, for there is none."""
    number = value
    if hasattr(value, "item"):
        with suppress(ValueError, RuntimeError):  # it holds several
            number = value.item()
    if number is None or isinstance(number, int | float):
        return number
    raise ConfigError("", f"puts into a row what is no number: {name}", given=_kind(value), allowed=ALLOWED)


def _plain(value: Any, name: str) -> Any:
    with suppress(TypeError, ValueError):
        json.dumps(value)
        return value
    return _number(value, name)


def _kind(value: Any) -> str:
    """`Tensor of shape (3,)`."""
    shape = getattr(value, "shape", None)
    return type(value).__name__ + ("" if shape is None else f" of shape {tuple(shape)}")
