"""The directories of checkpoints: `checkpoints/step_00000200` is the state after 200 optimizer steps.

A checkpoint is written under another name and renamed when all of it is on disk, so a directory with the
final name is complete: the rename is the commit.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

_COMMITTED = re.compile(r"step_\d{8,}")
PARTIAL = ".partial"
PROGRESS = "progress.json"


@dataclass(frozen=True)
class Progress:
    """How far the run was, beside the tensors."""

    step: int
    """Optimizer steps done."""
    epoch: int
    offset: int
    """Samples of the epoch that were trained on."""
    world_size: int

    def write(self, directory: Path) -> None:
        (directory / PROGRESS).write_text(json.dumps(asdict(self), indent=2) + "\n")


def read_progress(checkpoint: Path) -> Progress:
    """Raises OSError or ValueError where `checkpoint` is none of ours."""
    try:
        return Progress(**json.loads((checkpoint / PROGRESS).read_text()))
    except TypeError as error:
        raise ValueError(f"{checkpoint / PROGRESS}: {error}") from error


def step_directory(work_dir: Path, step: int) -> Path:
    return work_dir / "checkpoints" / f"step_{step:08d}"


def _committed(work_dir: Path) -> list[Path]:
    """All committed checkpoints, oldest first."""
    found = (path for path in work_dir.glob("checkpoints/step_*") if _COMMITTED.fullmatch(path.name))
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


def newest(work_dir: Path) -> Path | None:
    return next(iter(_committed(work_dir)[::-1]), None)


def prune(work_dir: Path, keep_last: int) -> None:
    """Removes all but the newest committed checkpoints, and what was never committed."""
    stale = _committed(work_dir)[:-keep_last] + list(work_dir.glob(f"checkpoints/*{PARTIAL}"))
    for path in stale:
        shutil.rmtree(path, ignore_errors=True)
