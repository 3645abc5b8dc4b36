"""Rows of a metrics.jsonl that another process writes: the newest ones, and those that come.

A last line that is not whole yet is normal, and so is a file that a restart has replaced by a shorter one.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

_BLOCK = 1 << 16
_FAR = 1 << 24
"""Bytes from the end within which the newest rows are looked for: files may have hundreds of megabytes."""
_SHOWN = 10
"""Rows that were there before which `NewRows` begins with, as `tail` does …"""
_NEAR = 1 << 20
"""… as far as they are in so many bytes: one of 300 groups has 50 thousand."""

Row = dict[str, Any]


def newest_rows(path: Path) -> tuple[Row, Row]:
    """The newest training row and the newest evaluation row; empty where there is none.

    A loss or metric that was not finite is nan.
    """
    training: Row = {}
    evaluation: Row = {}
    try:
        for line in _backwards(path):
            if training and b'"eval"' not in line:
                continue
            row = _parse(line)
            if "eval" in row:
                evaluation = row
            elif "loss" in row:
                training = training or row
            if training and evaluation:
                break
    except OSError:
        pass
    return training, evaluation


class NewRows:
    """The rows of a file as they come, each once: those that a restart keeps are not new.

    Args:
        path: The file; need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._first: int | None = None  # where reading began
        self._place = 0  # all before it is read …
        self._last = b""  # … and ends with this line
        self._seen: set[int] = set()  # hashes of lines

    def read(self) -> list[Row]:
        """Rows of training or evaluation that were added since the last call; at first the last few."""
        try:
            with self._path.open("rb") as file:
                lines, begins = self._new_lines(file)
        except OSError:
            self._first = self._first or 0  # what comes is all new
            return []
        rows = [row for row in map(_parse, lines) if "loss" in row or "eval" in row]
        return rows[-_SHOWN:] if begins else rows

    def _new_lines(self, file: BinaryIO) -> tuple[list[bytes], bool]:
        """And whether reading has only begun with them, somewhere in the file."""
        size = file.seek(0, os.SEEK_END)
        if not self._goes_on(file):
            self._place, self._last = self._first or 0, b""
        begins = self._first is None or self._place > size
        if begins:
            self._first = self._place = max(0, size - _NEAR)
        file.seek(self._place)
        lines = file.read().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            lines.pop()
        if lines:
            self._place += sum(map(len, lines))
            self._last = lines[-1]
        new = [line for line in lines if hash(line) not in self._seen]
        self._seen.update(map(hash, lines))
        return new, begins

    def _goes_on(self, file: BinaryIO) -> bool:
        """Whether what was read last still stands where it was read."""
        file.seek(self._place - len(self._last))
        return file.read(len(self._last)) == self._last


def _backwards(path: Path) -> Iterator[bytes]:
    """The lines of a file, the last one first."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        until = max(0, end - _FAR)
        rest = b""
        while end > until:
            begin = max(until, end - _BLOCK)
            file.seek(begin)
            rest, *lines = (file.read(end - begin) + rest).split(b"\n")
            yield from reversed(lines)
            end = begin
        yield rest


def _parse(line: bytes) -> Row:
    """A row; empty where the line is none: torn, or not ours."""
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        return {}
    return {key: _number(value, key) for key, value in row.items()}


def _number(value: Any, key: str) -> Any:
    if isinstance(value, dict):
        return {name: math.nan if number is None else number for name, number in value.items()}
    return math.nan if value is None and key == "loss" else value
