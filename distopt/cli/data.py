"""The config's data as a run in one process would load it."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset

from distopt import parts
from distopt.config import BatchLayout, Config
from distopt.data import EvalLoader, TrainLoader


def train_batches(config: Config, train_data: Dataset[Any]) -> TrainLoader:
    """The training data cut into steps, whose number does not depend on the world.

    Raises:
        ConfigError: The batch does not do for the data, or `data.collate` cannot be built.
    """
    return TrainLoader(
        train_data,
        _layout(config),
        collate=parts.collate(config),
        drop_last=config.data.drop_last,
    )


def val_batches(config: Config, val_data: Dataset[Any]) -> EvalLoader:
    """The validation data cut into micro-batches.

    Raises:
        ConfigError: `data.collate` cannot be built.
    """
    return EvalLoader(val_data, _layout(config), collate=parts.collate(config))


def run_length(config: Config, steps_per_epoch: int | None) -> int:
    """The optimizer steps of the whole run."""
    return config.max_steps or (config.max_epochs or 0) * (steps_per_epoch or 0)


def _layout(config: Config) -> BatchLayout:
    """That of one process, whatever the strategy."""
    size = config.data.batch_size
    micro_batch_size = config.data.micro_batch_size or size
    return BatchLayout(size, micro_batch_size, size // micro_batch_size, world=1)
