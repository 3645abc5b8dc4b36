"""What a checkpoint is made of: each file with its size and checksum, so that damage is found before use."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

NAME: Final = "manifest.json"


class Entry(NamedTuple):
    """One file."""

    bytes: int
    sha256: str


def entry_of(path: Path) -> Entry:
    """Reads all of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Entry(file.tell(), digest)


def text_of(directory: Path, known: Mapping[str, Entry]) -> str:
    """The manifest of all files in `directory`; those that are not `known` are read."""
    names = sorted(path.name for path in directory.iterdir() if path.name != NAME)
    entries = {name: known.get(name) or entry_of(directory / name) for name in names}
    return json.dumps({"files": {name: entry._asdict() for name, entry in entries.items()}}, indent=1) + "\n"


def total_bytes(checkpoint: Path) -> int:
    """Raises OSError or ValueError where the manifest cannot be read."""
    return sum(entry.bytes for entry in _read(checkpoint).values())


def damage(checkpoint: Path, share: tuple[int, int] | None = (0, 1)) -> str | None:
    """What is wrong with a checkpoint, as a clause; None where nothing is.

    Args:
        checkpoint: Its directory.
        share: Which part of the files to read, and of how many, so that ranks can divide the work; None looks
            at names and sizes alone.
    """
    try:
        listed = _read(checkpoint)
        sizes = {path.name: path.stat().st_size for path in checkpoint.iterdir() if path.name != NAME}
    except (OSError, ValueError) as error:
        return f"its manifest cannot be read: {error}"
    for name in sorted(listed.keys() | sizes.keys()):
        if name not in sizes:
            return f"{name} is missing"
        if name not in listed:
            return f"{name} does not belong to it"
        if sizes[name] != listed[name].bytes:
            return f"{name} has {sizes[name]:,} bytes, not {listed[name].bytes:,}"
    if share is None:
        return None
    part, parts = share
    for name in sorted(listed)[part::parts]:
        try:
            intact = entry_of(checkpoint / name) == listed[name]
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
        if not intact:
            return f"{name} is not what was written: its checksum differs"
    return None


def _read(checkpoint: Path) -> dict[str, Entry]:
    try:
        files = json.loads((checkpoint / NAME).read_text(encoding="utf-8"))["files"]
        return {name: Entry(**entry) for name, entry in files.items()}
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not what a checkpoint has there ({error})") from error
