"""metrics.jsonl: one JSON object a row."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distopt.files import replace_text


class JsonLines:
    """Appends rows to a file, each written through to the system at once: a crash loses one row at most.

    Args:
        path: The file. Rows that the run is about to repeat are taken out of it, with whatever a crash
            left of a row.
        first_step: Optimizer steps done before. Rows after it go; at 0 every row.
    """

    def __init__(self, path: Path, first_step: int) -> None:
        if first_step > 0 and path.exists():
            _drop_after(path, first_step)
        self._file = path.open("a" if first_step > 0 else "w", encoding="utf-8", buffering=1)

    def log(self, row: Mapping[str, Any]) -> None:
        """Appends `row`. A number that is not finite becomes null: JSON has none."""
        try:
            line = json.dumps(row, allow_nan=False)
        except ValueError:
            line = json.dumps(finite(row))
        self._file.write(line + "\n")

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _drop_after(path: Path, step: int) -> None:
    kept = [
        line
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
        if _step_of(line) <= step
    ]
    replace_text(path, "".join(f"{line}\n" for line in kept))


def _step_of(line: str) -> float:
    """A row's step; infinite for what is no row: a torn line goes as well."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf


def finite(value: Any) -> Any:
    """Plain data in which what is no finite number has become None, for JSON has none."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
