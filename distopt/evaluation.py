"""Evaluation: the mean loss and the metrics over a dataset, exact on any number of ranks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from distopt import comm, names, parallel
from distopt.data import MicroBatch
from distopt.ema import Ema
from distopt.errors import ConfigError, describe
from distopt.means import Means
from distopt.objective import TARGETS, Objective, Outcome, scalars

if TYPE_CHECKING:
    from torchmetrics import Metric

T = TypeVar("T")


class Evaluation:
    """Evaluates a model; its modules are in evaluation mode meanwhile.

    Args:
        objective: The model as trained, and its loss.
        batches: This rank's; every rank has equally many, and one without samples only keeps step.
        metrics: By name, on `device`; each computes over all ranks by itself.
        precision: What the forward computes in.
        device: This rank's own.
        ema: Whose averages are evaluated too, as `ema.loss` beside `loss` and so on; None for none.
    """

    def __init__(
        self,
        objective: Objective,
        batches: Iterable[MicroBatch],
        metrics: Mapping[str, Metric],
        *,
        precision: parallel.Precision,
        device: torch.device,
        ema: Ema | None = None,
    ) -> None:
        # DDP's own forward would exchange buffers; FSDP's forward, which gathers parameters, stays.
        self._model = names.unwrap(objective.model)
        self._objective = Objective(self._model, objective.loss)
        self._batches = batches
        self._metrics = metrics
        self._precision = precision
        self._device = device
        self._ema = ema

    def run(self, interrupted: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
        """Evaluates on all batches; every rank calls this.

        Args:
            interrupted: Asked before each batch: whether to break off.

        Returns:
            `loss` and what else the model returned as numbers, each the mean over all items of all ranks;
            and the metrics. None where it was broken off.

        Raises:
            ConfigError: A metric that does not take predictions and targets, or whose value is no number.
        """
        found = self._run(self._batches, interrupted)
        if found is None or self._ema is None:
            return found
        with self._ema.applied():
            averaged = self._run(self._batches, interrupted)
        return None if averaged is None else found | _of_averages(averaged)

    def rehearse(self) -> dict[str, bool | None]:
        """Evaluates on one batch, so that what fails does so now, not after many steps.

        Returns:
            What evaluation yields: name → whether higher is better, None where that is not known.
        """
        with warnings.catch_warnings(action="ignore"):  # of metrics that miss a class in so few samples
            found = self._run(islice(self._batches, 1), lambda: False, is_first=True) or {}
        known = {name: metric.higher_is_better for name, metric in self._metrics.items()}
        higher = {name: False if name == "loss" else known.get(name) for name in found}
        return higher if self._ema is None else higher | _of_averages(higher)

    def _run(
        self, batches: Iterable[MicroBatch], interrupted: Callable[[], bool], is_first: bool = False
    ) -> dict[str, float] | None:
        parallel.average_buffers(self._model)
        means = Means(self._device)
        for metric in self._metrics.values():
            metric.reset()
        with _evaluating(self._model), torch.no_grad():
            for batch, samples, _ in batches:
                if interrupted():
                    parallel.reshard(self._model)
                    return None
                with _noting(batch, is_first), parallel.autocast(self._precision, self._device):
                    outcome = self._objective(batch)
                items = samples if outcome.items is None else outcome.items
                means.add(scalars(outcome), items if samples else 0)
                self._update_metrics(outcome, samples)
        parallel.reshard(self._model)
        if is_first:  # else ranks with other numbers would wait for each other
            comm.agree({"numbers returned in evaluation": ", ".join(sorted(means.names))})
        values = means.reduce().values
        return values | {name: _compute(metric, name) for name, metric in self._metrics.items()}

    def _update_metrics(self, outcome: Outcome, samples: int) -> None:
        for name, metric in self._metrics.items():
            untouched = not metric.update_called
            if samples or untouched:
                _update(metric, name, outcome)
            if untouched and not samples:
                _empty(metric)


def _of_averages(values: Mapping[str, T]) -> dict[str, T]:
    return {f"ema.{name}": value for name, value in values.items()}


def _update(metric: Metric, name: str, outcome: Outcome) -> None:
    prediction, target = outcome.prediction, outcome.target
    key = f"eval.metrics.{name}"
    if target is None:
        raise ConfigError(
            key,
            "there is no target to compare with",
            allowed=f"batches that are tuples ending with it, or mappings with one of {', '.join(TARGETS)}",
        )
    if isinstance(prediction, Tensor) and prediction.dtype in (torch.bfloat16, torch.float16):
        prediction = prediction.float()
    try:
        metric.update(prediction, target)
    except Exception as error:
        raise ConfigError(
            key,
            f"{type(metric).__name__} does not take predictions and targets like these: {describe(error)}",
            given=f"{_shape(prediction)} and {_shape(target)}",
        ) from error


def _empty(metric: Metric) -> None:
    """Leaves a metric without samples, but with states that have a shape.

    A rank that never updated would have empty lists, and not take part in the exchange of their tensors.
    """
    for part in metric.modules():  # some metrics wrap others
        for name, initial in getattr(part, "_defaults", {}).items():
            state = getattr(part, name)
            if isinstance(initial, list):
                setattr(part, name, [values.reshape(values.shape or (1,))[:0] for values in state])
            else:
                setattr(part, name, initial.clone())


def _compute(metric: Metric, name: str) -> float:
    key = f"eval.metrics.{name}"
    try:
        value: object = metric.compute()
    except Exception as error:
        raise ConfigError(key, f"{type(metric).__name__}.compute() raised {describe(error)}") from error
    if isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1):
        return float(value)
    raise ConfigError(
        key,
        f"{type(metric).__name__} computes no single number",
        given=_shape(value),
        allowed="a metric that computes one (for several classes: average: macro)",
    )


@contextmanager
def _noting(batch: object, is_first: bool) -> Iterator[None]:
    """Names the data in what the model raises of a first batch: it may differ from what is trained on."""
    try:
        yield
    except Exception as error:
        if is_first and not isinstance(error, ConfigError):
            error.add_note(f"on the first batch of data.val, before training: {_form(batch)}")
        raise


def _form(batch: object) -> str:
    """`input_ids: Tensor of shape (8, 12), labels: Tensor of shape (8,)`."""
    if isinstance(batch, Mapping):
        return ", ".join(f"{key}: {_shape(value)}" for key, value in batch.items())
    return ", ".join(map(_shape, batch)) if isinstance(batch, tuple | list) else _shape(batch)


def _shape(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    return type(value).__name__


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the block; afterwards each module's own, since some may be frozen in theirs."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        model.train(modes[0][1])  # for those that do more in it than set the mode
        for module, training in modes:
            module.training = training
