"""The parts of a run that the config names: datasets and model, built and looked at."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.data import Dataset, IterableDataset

from distopt import registry
from distopt.config import Component, Config
from distopt.errors import ConfigError


def train_dataset(config: Config, given: Dataset[Any] | None = None) -> Dataset[Any]:
    """Builds `data.train`, or takes what is `given` in its place.

    Raises:
        ConfigError: It cannot be built, has no length, or is smaller than one batch.
    """
    dataset = _dataset(config.data.train, "data.train", given)
    size = len(dataset)  # type: ignore[arg-type]
    if config.data.batch_size > size:
        problem, allowed = "larger than the training set", f"at most {size}"
        raise ConfigError("data.batch_size", problem, given=config.data.batch_size, allowed=allowed)
    return dataset


def val_dataset(config: Config, given: Dataset[Any] | None = None) -> Dataset[Any] | None:
    """Builds `data.val` where the config has it, or takes what is `given` in its place.

    Raises:
        ConfigError: It cannot be built, has no length, or is empty.
    """
    return _dataset(config.data.val, "data.val", given) if config.data.val else given


def model(config: Config, given: nn.Module | None = None) -> nn.Module:
    """Builds `model` on torch's current default device, or takes what is `given` in its place.

    Raises:
        ConfigError: It cannot be built, or is no module.
    """
    built = registry.build(config.model, "model", "model") if given is None else given
    if not isinstance(built, nn.Module):
        raise ConfigError(
            "model.type",
            f"returned no model, but a {type(built).__name__}",
            given=config.model.type,
            allowed="what returns a torch.nn.Module",
        )
    return built


def _dataset(component: Component, key: str, given: Dataset[Any] | None) -> Dataset[Any]:
    dataset: Dataset[Any] = registry.build(component, "dataset", key) if given is None else given
    map_style = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    if not map_style or isinstance(dataset, IterableDataset):
        raise ConfigError(
            f"{key}.type",
            "no map-style dataset",
            given=component.type if given is None else type(given).__name__,
            allowed="what has __len__ and __getitem__",
        )
    if len(dataset) == 0:  # type: ignore[arg-type]
        raise ConfigError(key, "the dataset is empty", given=type(dataset).__name__)
    return dataset
