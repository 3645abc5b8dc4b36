"""What can be said about a config without torch, beyond what its schema says."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from distopt import registry
from distopt.checkpoint.resume import find_start
from distopt.config import Config, OpenSection, batch_layout
from distopt.errors import ConfigError, collecting, raise_all
from distopt.schedule import check_types


def preflight(config: Config, world: int | None, *, here: bool = True) -> None:
    """Checks the names of types, the files and, where the world is known, the batch.

    Args:
        config: Of the run.
        world: Number of ranks.
        here: The run directory is the one of this machine.

    Raises:
        ConfigError: All that is wrong, with the `file:line` of each.
    """
    errors: list[ConfigError] = []
    for key, kind, component in _components(config):
        with collecting(errors):
            registry.check_name(component.type, kind, f"{key}.type")
        for at, value in registry.objects(component.arguments, key):
            with collecting(errors):
                registry.check_name(value["type"], "object", f"{at}.type")
    with collecting(errors):
        registry.check_name(config.optimizer.constructor, "constructor", "optimizer.constructor")
    if here:
        with collecting(errors):
            _check_work_dir(config.work_dir)
        with collecting(errors):
            find_start(config.work_dir, config.resume, config.to_dict())
    with collecting(errors):
        check_types(config.param_scheduler)
    if world:
        with collecting(errors):
            batch_layout(config, world)
    raise_all(error.located(config.locate) for error in errors)


def _components(config: Config) -> Iterator[tuple[str, str, OpenSection]]:
    """Key, kind and section of all that has a type, but the schedules: those are no one's to name."""
    yield "model", "model", config.model
    yield "data.train", "dataset", config.data.train
    yield "optimizer", "optimizer", config.optimizer
    if config.data.val:
        yield "data.val", "dataset", config.data.val
    if config.data.collate:
        yield "data.collate", "collate", config.data.collate
    if config.loss:
        yield "loss", "loss", config.loss
    for name, metric in (config.eval.metrics if config.eval else {}).items():
        yield f"eval.metrics.{name}", "metric", metric
    for key, part in config.optimizer.paramwise.parts.items():
        yield f"optimizer.paramwise_cfg.custom_keys.{key}", "optimizer", part
    for i, callback in enumerate(config.callbacks):
        yield f"callbacks.{i}", "callback", callback


def _check_work_dir(work_dir: Path) -> None:
    """Tries to write where it is, or where it would be made, leaving nothing behind."""
    existing = work_dir
    try:
        existing = next(path for path in (work_dir, *work_dir.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
    except FileNotFoundError:  # how a file system of the kernel's says no
        raise ConfigError("work_dir", f"nothing can be created in {existing}", given=str(work_dir)) from None
    except OSError as error:
        raise ConfigError(
            "work_dir", f"cannot be written: {existing}: {error.strerror}", given=str(work_dir)
        ) from None
    for path in (work_dir / name for name in ("checkpoints", "logs", "tensorboard")):
        if path.exists() and not path.is_dir():
            raise ConfigError("work_dir", f"{path} is not a directory", given=str(work_dir))
