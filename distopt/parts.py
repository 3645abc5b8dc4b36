"""The parts of a run that the config names, built and looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.data import Dataset

from distopt import registry
from distopt.callbacks import Callback
from distopt.config import Component, Config
from distopt.data import is_stream, length
from distopt.data.blame import blaming
from distopt.errors import ConfigError
from distopt.optim import Configured, Prebuilt

if TYPE_CHECKING:
    from torchmetrics import Metric


_WRAPPERS = (DistributedDataParallel, FSDPModule, FullyShardedDataParallel)


def train_dataset(config: Config, given: Dataset[Any] | None = None) -> Dataset[Any]:
    """Builds `data.train`, or takes what is `given` in its place.

    Raises:
        ConfigError: It cannot be built, is no dataset, or does not tell how long `max_epochs` are.
    """
    dataset = _dataset(config.data.train, "data.train", given)
    if config.max_epochs and length(dataset) is None:
        problem = "the length of data.train is not known"
        raise ConfigError("max_epochs", problem, given=config.max_epochs, allowed="max_steps in its place")
    return dataset


def val_dataset(config: Config, given: Dataset[Any] | None = None) -> Dataset[Any] | None:
    """Builds `data.val` where the config has it, or takes what is `given` in its place.

    Raises:
        ConfigError: It cannot be built, is no dataset, or is empty.
    """
    return _dataset(config.data.val, "data.val", given) if config.data.val else given


def collate(config: Config) -> Callable[[list[Any]], Any] | None:
    """Builds `data.collate`, which is called with the samples of a batch; None for torch's own."""
    if config.data.collate is None:
        return None
    return registry.build_function(config.data.collate, "collate", "data.collate", takes=1)


def model(config: Config, given: nn.Module | None = None) -> nn.Module:
    """Builds `model`, with `strategy.meta_init` without memory, or takes what is `given` in its place.

    Raises:
        ConfigError: It cannot be built, or is no module.
    """
    with torch.device("meta") if config.strategy.meta_init else nullcontext():
        built = registry.build(config.model, "model", "model") if given is None else given
    if not isinstance(built, nn.Module):
        raise ConfigError(
            "model.type",
            f"returned no model, but a {type(built).__name__}",
            given=config.model.type,
            allowed="what returns a torch.nn.Module",
        )
    wrapped = next((type(m).__name__ for m in built.modules() if isinstance(m, _WRAPPERS)), None)
    if wrapped:
        problem = f"is wrapped already ({wrapped})"
        raise ConfigError("model", problem, allowed="the model itself, which `strategy` wraps")
    return built


def groups(
    config: Config, model: nn.Module, given: Optimizer | Callable[[nn.Module], Optimizer] | None = None
) -> Configured | Prebuilt:
    """Plans `optimizer`, or takes the groups of one that is `given` in its place, or built by what is given.

    Raises:
        ConfigError: As `make_plan`; or the optimizer given is not for this model.
    """
    if given is None:
        return Configured(model, config.optimizer)
    if config.optimizer.paramwise_cfg is not None:
        problem = "is not for an optimizer that is built already"
        raise ConfigError("optimizer.paramwise_cfg", problem, allowed="its own groups, and no paramwise_cfg")
    optimizer = given if isinstance(given, Optimizer) else given(model)
    if not isinstance(optimizer, Optimizer):
        problem = f"what builds it returned no optimizer, but a {type(optimizer).__name__}"
        raise ConfigError("optimizer", problem, allowed="a torch.optim.Optimizer")
    return Prebuilt(optimizer, model)


def loss(config: Config) -> Callable[[Any, Any], Any] | None:
    """Builds `loss`, which is called with output and target; None where the model returns its loss.

    Raises:
        ConfigError: It cannot be built, or has parameters: they would belong to no optimizer group.
    """
    if config.loss is None:
        return None
    function = registry.build_function(config.loss, "loss", "loss", takes=2)
    if isinstance(function, nn.Module) and any(True for _ in function.parameters()):
        problem = "has parameters of its own, which nothing would train"
        raise ConfigError("loss", problem, given=config.loss.type, allowed="a model that returns this loss")
    return function


def metrics(config: Config, device: torch.device) -> dict[str, Metric]:
    """Builds `eval.metrics`, each on `device`.

    Raises:
        ConfigError: One cannot be built, or is no metric.
    """
    built = {}
    for name, component in (config.eval.metrics if config.eval else {}).items():
        key = f"eval.metrics.{name}"
        metric = registry.build(component, "metric", key)
        from torchmetrics import Metric  # installed, since a metric could be built

        if not isinstance(metric, Metric):
            problem = f"returned no metric, but a {type(metric).__name__}"
            allowed = "what returns a torchmetrics.Metric"
            raise ConfigError(f"{key}.type", problem, given=component.type, allowed=allowed)
        built[name] = metric.to(device)
    return built


def callbacks(config: Config, given: Sequence[Callback] = ()) -> dict[str, Callback]:
    """Builds `callbacks`, by config key, and adds those `given`."""
    built = {}
    for i, component in enumerate(config.callbacks):
        key = f"callbacks.{i}"
        built[key] = registry.build(component, "callback", key)
        if not isinstance(built[key], Callback):
            problem = f"returned no callback, but a {type(built[key]).__name__}"
            raise ConfigError(f"{key}.type", problem, given=component.type)
    return built | {f"callbacks.{len(built) + i}": callback for i, callback in enumerate(given)}


def _dataset(component: Component, key: str, given: Dataset[Any] | None) -> Dataset[Any]:
    dataset: Dataset[Any] = registry.build(component, "dataset", key) if given is None else given
    if not is_stream(dataset) and not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise ConfigError(
            f"{key}.type",
            "no dataset",
            given=component.type if given is None else type(given).__name__,
            allowed="what has __len__ and __getitem__, or __iter__ (a stream)",
        )
    with blaming(key, f"{type(dataset).__name__}.__len__()"):
        count = length(dataset)
    if count == 0:
        raise ConfigError(key, "the dataset is empty", given=type(dataset).__name__)
    return dataset
