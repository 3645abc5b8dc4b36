"""The directories of checkpoints: `checkpoints/step_00000200` is the state after 200 optimizer steps.

A checkpoint is written under another name and renamed when all of it is on disk, its manifest last, so a
directory with the final name is complete: the rename is the commit.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distopt.checkpoint import manifest

_COMMITTED = re.compile(r"step_\d{8,}")
_PARTIAL = ".partial"
_BEST = "best"
_PROGRESS = "progress.json"


@dataclass(frozen=True)
class Progress:
    """How far the run was, beside the tensors."""

    step: int
    """Optimizer steps done."""
    world_size: int
    data: list[dict[str, Any]]
    """The place of each rank in the training data."""
    epoch: int = 0
    """That of the step."""
    evaluated: bool = True
    """Whether the evaluation that was due at this step was done."""

    def document(self) -> dict[str, str]:
        """The file that says so: its name → its text."""
        return {_PROGRESS: json.dumps(asdict(self), indent=2) + "\n"}


def read_progress(checkpoint: Path) -> Progress:
    """Raises OSError or ValueError where `checkpoint` is none of ours."""
    path = checkpoint / _PROGRESS
    try:
        progress = Progress(**json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    if type(progress.step) is not int or not isinstance(progress.data, list):
        raise ValueError(f"{path}: not what a checkpoint has there")
    return progress


def step_directory(work_dir: Path, step: int) -> Path:
    return work_dir / "checkpoints" / f"step_{step:08d}"


def is_committed(checkpoint: Path) -> bool:
    """Whether the name is one that a complete checkpoint has."""
    return _COMMITTED.fullmatch(checkpoint.name) is not None


def committed(work_dir: Path) -> list[Path]:
    """All committed checkpoints, oldest first."""
    found = filter(is_committed, work_dir.glob("checkpoints/step_*"))
    return sorted(found, key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


def newest(work_dir: Path) -> Path | None:
    return next(reversed(committed(work_dir)), None)


def mark_best(checkpoint: Path) -> None:
    """Makes `checkpoints/best` a link to it."""
    draft = checkpoint.with_name(f"{_BEST}.new")
    draft.unlink(missing_ok=True)
    draft.symlink_to(checkpoint.name)
    draft.replace(checkpoint.with_name(_BEST))


def followed(path: Path) -> Path:
    """The checkpoint that `checkpoints/best` stands for; any other path as it is."""
    return path.with_name(path.readlink().name) if path.name == _BEST and path.is_symlink() else path


def partial_of(directory: Path) -> Path:
    """Where a checkpoint is written before it is committed."""
    return directory.with_name(directory.name + _PARTIAL)


def commit(directory: Path, known: Mapping[str, manifest.Entry] | None = None) -> None:
    """Writes the manifest of the finished partial directory and gives it its final name.

    One that had the name before gives way.

    Args:
        directory: As it will be.
        known: Of the files in it, what the manifest is to say of those that need not be read for it.
    """
    partial = partial_of(directory)
    write_text(partial / manifest.NAME, manifest.text_of(partial, known or {}))
    _sync(partial)
    if directory.exists():
        _rename_away(directory, "replaced")
    partial.rename(directory)
    _sync(directory.parent)


def prune(work_dir: Path, keep_last: int, keep_every: int | None = None) -> None:
    """Removes all but the newest readable checkpoints, and what was never committed.

    Multiples of `keep_every` steps stay as well, and the best one. One that cannot be read neither counts as
    kept nor is removed: that is for the user to judge.
    """
    best = followed(work_dir / "checkpoints" / _BEST)
    readable = [path for path in committed(work_dir) if _is_readable(path)]
    for path in readable[:-keep_last]:
        if path == best or (keep_every and _step(path) % keep_every == 0):
            continue
        with suppress(OSError):
            _rename_away(path, "pruned")
    for path in work_dir.glob(f"checkpoints/step_*{_PARTIAL}"):
        remove(path)


def remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Returns when the text is on disk."""
    path.write_text(text, encoding="utf-8")
    _sync(path)


def _sync(path: Path) -> None:
    """Of a directory: the names in it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename_away(directory: Path, reason: str) -> None:
    """A committed name must never stand for half a checkpoint, not even while one is deleted."""
    away = partial_of(directory.with_name(f"{directory.name}.{reason}"))
    remove(away)
    directory.rename(away)


def _is_readable(checkpoint: Path) -> bool:
    return damage(checkpoint, share=None) is None


def damage(checkpoint: Path, share: tuple[int, int] | None) -> str | None:
    """What is wrong with a checkpoint, as a clause: see `manifest.damage`; or it says no progress."""
    found = manifest.damage(checkpoint, share)
    if found is None:
        try:
            read_progress(checkpoint)
        except (OSError, ValueError) as error:
            return str(error)
    return found
