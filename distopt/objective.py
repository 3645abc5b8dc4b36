"""What a model is asked in a step: one batch in, one loss out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from distopt import names
from distopt.errors import ConfigError, name_of

TARGETS = ("target", "targets", "label", "labels")
"""The keys of a batch that hold what a configured loss, or a metric, is to compare with."""

Number = Tensor | float


class Outcome(NamedTuple):
    """What came out of one batch."""

    loss: Tensor
    """Scalar: the mean over the batch's items."""
    items: Number | None
    """How many items that was; None where nothing said so, and each sample counts as one."""
    fields: Mapping[str, Any]
    """All that was returned, by name."""
    prediction: Any
    """What metrics look at: the output's `logits`, or the output."""
    target: Any
    """What they compare it with; None where the batch has none."""


class Objective:
    """Runs a model on batches: a mapping gives keywords, a tuple or list arguments, else one argument.

    Args:
        model: As trained: wrapped.
        loss: Called with the prediction and the target, which the model then does not get; None where the
            model returns its loss. Both return a scalar, or a mapping or object with `loss`.
    """

    def __init__(self, model: nn.Module, loss: Callable[[Any, Any], Any] | None = None) -> None:
        self.model = model
        self.loss = loss
        self._fits = False

    def __call__(self, batch: Any) -> Outcome:
        """Runs the model, and the loss where there is one.

        Raises:
            ConfigError: The model does not take the batch, or no scalar loss with a gradient came out.
        """
        arguments, keywords, target = self._split(batch)
        if not self._fits:
            check_call(self.model, arguments, keywords)
            self._fits = True
        output = self.model(*arguments, **keywords)
        fields = _fields(output)
        prediction = fields.get("logits", output)
        if self.loss is not None:
            output = self.loss(prediction, target)
            fields = _fields(output)
        return Outcome(self._checked(output, fields), fields.get("num_items"), fields, prediction, target)

    def check(self, batch: Any | None, key: str | None = None) -> None:
        """Says whether the model's forward takes such a batch, without running it; None is no batch.

        Args:
            batch: As the loaders give it.
            key: The config key to blame, where it is not the model's or the loss's fault.

        Raises:
            ConfigError: It does not.
        """
        if batch is None:
            return
        try:
            arguments, keywords, _ = self._split(batch)
            check_call(self.model, arguments, keywords)
        except ConfigError as error:
            error.key = key or error.key
            raise

    def _split(self, batch: Any) -> tuple[Sequence[Any], dict[str, Any], Any]:
        """A batch as the model's arguments and keywords, and the target."""
        if isinstance(batch, Mapping):
            key = next((key for key in TARGETS if key in batch), None)
            target = None if key is None else batch[key]
            if self.loss is None:
                return (), dict(batch), target
            if key is None:
                raise self._no_target("a mapping of " + ", ".join(map(str, batch)))
            return (), {name: value for name, value in batch.items() if name != key}, target
        if isinstance(batch, tuple | list):
            if self.loss is None:
                return batch, {}, batch[-1] if len(batch) > 1 else None
            if len(batch) < 2:
                raise self._no_target("a single value")
            return batch[:-1], {}, batch[-1]
        if self.loss is not None:
            raise self._no_target(f"a single {type(batch).__name__}")
        return (batch,), {}, None

    def _no_target(self, given: str) -> ConfigError:
        return ConfigError(
            "loss",
            "is to be called with the output and the target, and the batch has no target",
            given=given,
            allowed=f"a tuple that ends with it, or a mapping with one of {', '.join(TARGETS)}",
        )

    def _checked(self, output: Any, fields: Mapping[str, Any]) -> Tensor:
        loss, items = fields.get("loss", output), fields.get("num_items")
        is_scalar = isinstance(loss, Tensor) and loss.ndim == 0 and not loss.is_complex()
        if is_scalar and items is None and loss.requires_grad:
            return loss  # type: ignore[no-any-return]
        returned_by = names.unwrap(self.model) if self.loss is None else self.loss
        key = "model" if self.loss is None else "loss"
        if is_scalar and (loss.requires_grad or not torch.is_grad_enabled()):
            if not (
                items is None or isinstance(items, Real) or (isinstance(items, Tensor) and not items.ndim)
            ):
                raise ConfigError(
                    key,
                    f"{_name(returned_by)} returned a num_items that is no single number",
                    given=_describe(items, None),
                    allowed="a number or a 0-dimensional tensor",
                )
            return loss  # type: ignore[no-any-return]
        problem = f"{_name(returned_by)} returned no scalar loss"
        if is_scalar:
            problem = (
                f"{_name(returned_by)} returned a loss without a gradient: no parameter has a part in it"
            )
        elif isinstance(loss, Tensor) and loss.is_complex():
            problem = f"{_name(returned_by)} returned a complex loss"
        allowed = "a 0-dimensional tensor, or a mapping or object with such a `loss`"
        if self.loss is None:
            allowed += "; or `loss: {type: …}`, to be called with the output and the batch's target"
        raise ConfigError(key, problem, given=_describe(output, loss), allowed=allowed)


def scalars(outcome: Outcome) -> dict[str, Number]:
    """What is one number of all that was returned, the loss included."""
    found = {name: value for name, value in outcome.fields.items() if _is_number(name, value)}
    return {"loss": outcome.loss.detach(), **found}


def check_call(model: nn.Module, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> None:
    """Holds a batch against the signature of the model's forward.

    Raises:
        ConfigError: It does not fit; names what the batch has and what forward takes.
    """
    module = names.unwrap(model)
    signature = inspect.signature(module.forward)
    try:
        signature.bind(*arguments, **keywords)
    except TypeError as error:
        has = f"keys {', '.join(keywords)}" if keywords else f"{len(arguments)} values"
        raise ConfigError(
            "model",
            f"{names.module_type(module).__name__}.forward does not take what a batch has: {error}",
            given=has,
            allowed=", ".join(map(str, signature.parameters.values())) or "no arguments",
        ) from None


def _fields(output: Any) -> Mapping[str, Any]:
    """What was returned, by name: of a mapping, a named tuple or an object; of anything else nothing."""
    if isinstance(output, Mapping):
        return {name: value for name, value in output.items() if isinstance(name, str)}
    if isinstance(output, Tensor):
        return {}
    if hasattr(output, "_asdict"):
        return output._asdict()  # type: ignore[no-any-return]
    fields = getattr(output, "__dict__", {})
    # What is a property or a slot.
    others = [
        name for name in ("loss", "logits", "num_items") if name not in fields and hasattr(output, name)
    ]
    return {**fields, **{name: getattr(output, name) for name in others}}


def _is_number(name: str, value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.ndim == 0 and name != "num_items"
    return isinstance(value, int | float) and not isinstance(value, bool) and name != "num_items"


def _name(function: Any) -> str:
    if isinstance(function, nn.Module):
        return f"{names.module_type(function).__name__}.forward"
    return name_of(function)


def _describe(output: Any, loss: Any) -> str:
    """`Tensor of shape (8, 10)`; `dict with logits, hidden`; `dict with loss, which is None`."""
    if isinstance(output, Tensor):
        return f"Tensor of shape {tuple(output.shape)}"
    fields = _fields(output)
    text = type(output).__name__ + (f" with {', '.join(map(str, fields))}" if fields else "")
    if "loss" in fields:
        text += f"; its loss is a {_describe(loss, loss)}" if loss is not None else "; its loss is None"
    return text
