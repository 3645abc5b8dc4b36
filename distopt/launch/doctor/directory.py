"""Whether all ranks share one work_dir: what each writes, rank 0 reads, and the other way round."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from distopt.launch.doctor.facts import WorkDir


def probe_work_dir(path: Path) -> WorkDir:
    """What this rank sees of it; where it does not exist yet, of what is above it: nothing is made."""
    path = path.absolute()
    found = next(above for above in (path, *path.parents) if above.is_dir())
    space = os.statvfs(found)
    problem = f"{path} is not a directory" if path.exists() and path != found else None
    try:
        with _file(found, uuid4().hex, os.getpid()):
            pass
    except OSError as error:
        problem = error.strerror or str(error)
    return WorkDir(str(path), str(found), _kind(found), space.f_frsize * space.f_bavail, problem)


@contextmanager
def token(work_dir: WorkDir | None, name: str, rank: int) -> Iterator[None]:
    """Leaves a small file of this rank's in the directory, where it can be written, for the `with` block."""
    if work_dir is None or work_dir.problem:
        yield
        return
    with _file(Path(work_dir.found), name, rank):
        yield


def sees(work_dir: WorkDir, name: str, rank: int) -> bool:
    """Whether the file of that rank is in this rank's directory."""
    # Opened by name: a listing may be seconds old on a network file system.
    with suppress(OSError):
        return _path(Path(work_dir.found), name, rank).read_text() == f"{name} {rank}"
    return False


@contextmanager
def _file(folder: Path, name: str, rank: int) -> Iterator[None]:
    path = _path(folder, name, rank)
    try:
        with path.open("x") as file:
            file.write(f"{name} {rank}")
            file.flush()
            os.fsync(file.fileno())
        yield
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _path(folder: Path, name: str, rank: int) -> Path:
    return folder / f".distopt-doctor-{name}-{rank}"


def _kind(folder: Path) -> str:
    """The type of the file system, of the innermost mount that the folder is in."""
    resolved = folder.resolve()
    mounts = (line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines())
    inside = [(len(where), kind) for where, kind in mounts if resolved.is_relative_to(where)]
    return max(inside, default=(0, "unknown"), key=lambda mount: mount[0])[1]
