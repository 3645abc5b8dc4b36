"""Where a run starts: afresh, from a checkpoint, or not at all because it is done."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from distopt.checkpoint import directory
from distopt.config import document
from distopt.errors import ConfigError

_NOT_COMPARED = ("work_dir", "resume", "resume_groups", "resume_strict", "resume_rename", "profile")


@dataclass(frozen=True)
class Start:
    """What the run directory says about this start."""

    checkpoint: Path | None = None
    step: int = 0
    finished: bool = False
    """The run is done, with this very config."""
    differences: tuple[str, ...] = ()
    """`optimizer.lr: 0.001 → 0.0003`, against the config that the checkpoint was trained with."""
    skipped: tuple[str, ...] = ()
    """A sentence on each newer checkpoint that cannot be read."""
    save_seconds: float = 0.0
    """That the last checkpoint took to be written."""


def find_start(
    work_dir: Path, resume: str, config: Mapping[str, Any], damaged: Mapping[Path, str] = MappingProxyType({})
) -> Start:
    """Reads `work_dir`, changes nothing.

    Of the checkpoints it looks at names and sizes; whether they are what was written takes all ranks to find
    out, who may come back with those that are not.

    Args:
        work_dir: The run directory; need not exist.
        resume: `auto`, `never`, or the path of the checkpoint that a new run starts from. A run that has
            checkpoints of its own continues, also with a path: the same command can be submitted again.
        config: This run's resolved config, as it would be written to config.yaml.
        damaged: Checkpoints that cannot be used, and why.

    Raises:
        ConfigError: `never` in a directory that is not empty; a path that holds no checkpoint, or an
            earlier checkpoint of this very run.
    """
    if resume == "never":
        if work_dir.exists() and any(work_dir.iterdir()):
            problem = f"work_dir {work_dir} is not empty"
            raise ConfigError("resume", problem, given="never", allowed="auto, or another work_dir")
        return Start()
    own, skipped = _newest_readable(work_dir, damaged)
    origin = None if resume == "auto" else directory.followed(Path(resume).expanduser())
    if origin is not None:
        _check_not_earlier(origin, own, work_dir)
    checkpoint = own or origin
    if checkpoint is None:
        return Start(skipped=skipped)
    step = _step_of(checkpoint, damaged)
    last_config = _read_yaml(work_dir / "config.yaml")
    trained_with = _read_yaml(checkpoint / "config.yaml") or last_config
    status = _read_json(work_dir / "status.json")
    done = own is not None and not skipped and status.get("state") == "done"
    return Start(
        checkpoint,
        step,
        finished=done and bool(last_config) and not any(_differences(last_config, config)),
        differences=tuple(_differences(trained_with, config)) if trained_with else (),
        skipped=skipped,
        save_seconds=float(status.get("save_seconds") or 0),
    )


def _newest_readable(work_dir: Path, damaged: Mapping[Path, str]) -> tuple[Path | None, tuple[str, ...]]:
    skipped: list[str] = []
    for checkpoint in reversed(directory.committed(work_dir)):
        problem = damaged.get(checkpoint) or directory.damage(checkpoint, share=None)
        if problem is None:
            return checkpoint, tuple(skipped)
        skipped.append(f"{checkpoint} is damaged and passed over: {problem}")
    return None, tuple(skipped)


def _check_not_earlier(origin: Path, own: Path | None, work_dir: Path) -> None:
    """Raises ConfigError where going back to `origin` would silently be no going back at all."""
    if own is None or origin.resolve().parent != (work_dir / "checkpoints").resolve():
        return
    if origin.resolve() != own.resolve():
        raise ConfigError(
            "resume",
            f"this run is already at {own.name}: it would undo later checkpoints",
            given=str(origin),
            allowed="another work_dir; or remove the later checkpoints",
        )


def _step_of(checkpoint: Path, damaged: Mapping[Path, str]) -> int:
    problem: str | None = "it was never completed, or is none"
    if directory.is_committed(checkpoint):
        problem = damaged.get(checkpoint) or directory.damage(checkpoint, share=None)
    if problem is None:
        return directory.read_progress(checkpoint).step
    raise ConfigError(
        "resume",
        f"no complete checkpoint: {problem}",
        given=str(checkpoint),
        allowed="…/checkpoints/step_NNNNNNNN",
    )


def _differences(old: Any, new: Any, key: str = "") -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in dict.fromkeys([*old, *new]):
            if key or name not in _NOT_COMPARED:
                dotted = f"{key}.{name}" if key else str(name)
                yield from _differences(old.get(name), new.get(name), dotted)
    elif old != new:
        yield f"{key}: {_shown(old)} → {_shown(new)}"


def _shown(value: Any) -> str:
    """A section as YAML has it, without what is not set in it."""
    if not isinstance(value, Mapping):
        return str(value)
    items = [f"{name}: {_shown(item)}" for name, item in value.items() if item not in (None, {}, [])]
    return f"{{{', '.join(items)}}}"


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        return document.read(path).data
    except ConfigError:
        return {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
