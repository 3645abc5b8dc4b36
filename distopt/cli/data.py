"""The config's training data, for telling how long the run is."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset

from distopt import parts
from distopt.config import BatchLayout, Config
from distopt.data import TrainLoader


def train_batches(config: Config, train_data: Dataset[Any]) -> TrainLoader:
    """The training data cut into steps, whose number does not depend on the world.

    Raises:
        ConfigError: The batch does not do for the data, or `data.collate` cannot be built.
    """
    size, micro_batch_size = config.data.batch_size, config.data.micro_batch_size or config.data.batch_size
    return TrainLoader(
        train_data,
        BatchLayout(size, micro_batch_size, size // micro_batch_size, world=1),
        collate=parts.collate(config),
        drop_last=config.data.drop_last,
    )


def run_length(config: Config, steps_per_epoch: int | None) -> int:
    """The optimizer steps of the whole run."""
    return config.max_steps or (config.max_epochs or 0) * (steps_per_epoch or 0)
