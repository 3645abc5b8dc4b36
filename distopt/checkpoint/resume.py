"""Where a run starts: afresh, from a checkpoint, or not at all because it is done."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distopt.checkpoint.directory import newest, read_progress
from distopt.config import document
from distopt.errors import ConfigError

_NOT_COMPARED = ("work_dir", "resume")


@dataclass(frozen=True)
class Start:
    """What the run directory says about this start."""

    checkpoint: Path | None = None
    step: int = 0
    finished: bool = False
    """The run is done, with this very config."""
    differences: tuple[str, ...] = ()
    """`optimizer.lr: 0.001 → 0.0003`, against the config that the run directory holds."""


def find_start(work_dir: Path, resume: str, config: Mapping[str, Any]) -> Start:
    """Reads `work_dir`, changes nothing.

    Args:
        work_dir: The run directory; need not exist.
        resume: `auto`, `never`, or the path of a checkpoint.
        config: This run's resolved config, as it would be written to config.yaml.

    Raises:
        ConfigError: `never` in a directory that is not empty; a path that holds no checkpoint.
    """
    if resume == "never":
        if work_dir.exists() and any(work_dir.iterdir()):
            problem = f"work_dir {work_dir} is not empty"
            raise ConfigError("resume", problem, given="never", allowed="auto, or another work_dir")
        return Start()
    checkpoint = newest(work_dir) if resume == "auto" else Path(resume)
    if checkpoint is None:
        return Start()
    try:
        step = read_progress(checkpoint).step
    except (OSError, ValueError) as error:
        problem = f"no complete checkpoint: {error}"
        raise ConfigError(
            "resume", problem, given=str(checkpoint), allowed="…/checkpoints/step_NNNNNNNN"
        ) from error
    previous = _read_yaml(work_dir / "config.yaml")
    differences = tuple(_differences(previous, config)) if previous else ()
    finished = (
        resume == "auto" and not differences and _read_json(work_dir / "status.json").get("state") == "done"
    )
    return Start(checkpoint, step, finished, differences)


def _differences(old: Any, new: Any, key: str = "") -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in dict.fromkeys([*old, *new]):
            if key or name not in _NOT_COMPARED:
                dotted = f"{key}.{name}" if key else str(name)
                yield from _differences(old.get(name), new.get(name), dotted)
    elif old != new:
        yield f"{key}: {old} → {new}"


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        return document.read(path).data
    except ConfigError:
        return {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
