"""The nearest of very many names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

_INDEX = re.compile(r"(?<![^.])\d+(?![^.])")
_TOO_MANY = 5000
"""So many different names would take seconds to compare."""


def near(name: str, known: Iterable[str], most: int = 1) -> list[str]:
    """Those of `known` that are most like `name`, of the same indices where there is one, best first.

    Names that differ in indices only, as those of the layers do, are compared once.
    """
    alike: dict[str, list[str]] = {}
    for other in known:
        alike.setdefault(_INDEX.sub("0", other.lower()), []).append(other)
    if len(alike) > _TOO_MANY:
        return []
    indices = _INDEX.findall(name)
    return [
        next((other for other in alike[one] if _INDEX.findall(other) == indices), alike[one][0])
        for one in get_close_matches(_INDEX.sub("0", name.lower()), alike, most)
    ]
