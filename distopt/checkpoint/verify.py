"""The checkpoint to start from, read by all ranks together: it is what was written, or gives way."""

from __future__ import annotations

from pathlib import Path

from distopt import comm
from distopt.checkpoint import directory
from distopt.checkpoint.resume import Start, find_start
from distopt.config import Config


def verified(start: Start, config: Config, world: comm.World) -> Start:
    """Reads all of the checkpoint to start from, each rank a part; a damaged one gives way to an older.

    Raises:
        ConfigError: As `find_start`.
    """
    damaged: dict[Path, str] = {}
    while (checkpoint := start.checkpoint) is not None:
        found = comm.gather(directory.damage(checkpoint, share=(world.rank, world.size)))
        problem = next(filter(None, found), None)
        if problem is None:
            break
        damaged[checkpoint] = problem
        start = find_start(config.work_dir, config.resume, config.to_dict(), damaged)
    return start
