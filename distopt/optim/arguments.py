"""What an optimizer's class takes, and which ones cannot train here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from distopt import registry
from distopt.errors import ConfigError


def check_optimizer(type_: str, arguments: Mapping[str, Any], key: str) -> Callable[..., Any]:
    """The class, or function, that a `type` names, its arguments held against its signature.

    Raises:
        ConfigError: There is no such class; its arguments are not these; or it cannot train here.
    """
    optimizer = registry.resolve(type_, "optimizer", f"{key}.type")
    check_steps_once(optimizer, type_, f"{key}.type")
    if getattr(optimizer, "__name__", "") == "SparseAdam":
        raise ConfigError(f"{key}.type", "needs sparse gradients", given=type_, allowed="Adam, or another")
    registry.check_arguments(optimizer, arguments, key, provided=("params",))
    return optimizer


def check_steps_once(optimizer: Callable[..., Any], type_: str, key: str) -> None:
    """Raises ConfigError where the optimizer's `step` needs a closure."""
    step = getattr(optimizer, "step", None)
    closure = step and inspect.signature(step).parameters.get("closure")
    if closure and closure.default is closure.empty:
        problem = "evaluates the loss several times in a step (its step needs a closure)"
        raise ConfigError(key, problem, given=type_, allowed="an optimizer that steps once")


def defaults_of(optimizer: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What a group has that gives nothing itself: the arguments, else the defaults of the signature."""
    parameters = inspect.signature(optimizer).parameters.values()
    own = {p.name: p.default for p in parameters if p.default is not p.empty}
    return {**own, **arguments}


def hyperparameters(type_: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What of the arguments and defaults of the optimizer that a `type` names decides what it computes."""
    return plain_options(defaults_of(registry.resolve(type_, "optimizer", "optimizer.type"), arguments))


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are plain data, as JSON has it, and not which of several implementations is taken."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in options.items()
        if name not in _IMPLEMENTATIONS and is_plain(value)
    }


def is_plain(value: object) -> bool:
    """Whether a value is as YAML and JSON have it."""
    if isinstance(value, list | tuple):
        return all(is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def options_of(optimizer: Callable[..., Any]) -> tuple[str, ...] | None:
    """What a group of this optimizer can have; None where its signature does not tell."""
    parameters = inspect.signature(optimizer).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return tuple(parameter.name for parameter in parameters if parameter.name != "params")


@cache
def own_default(type_: str, option: str) -> Any:
    """The default of an option of the optimizer that a `type` names; None where it has none."""
    optimizer = registry.resolve(type_, "optimizer", "optimizer.type")
    parameter = inspect.signature(optimizer).parameters.get(option)
    return None if parameter is None or parameter.default is parameter.empty else parameter.default


def with_fused(
    optimizer: Callable[..., Any], arguments: Mapping[str, Any], params: Sequence[Any]
) -> dict[str, Any]:
    """The arguments, and `fused: true` for Adam and AdamW where no implementation was asked for.

    The fused kernel is the fastest on every device; torch takes it only when told to. It reads memory without
    regard to strides, and takes no mixture of DTensors and plain tensors, as tensor parallelism leaves. Those
    of SGD and Adagrad take no sparse gradients, and no DTensors where these are stepped as such: they are for
    the user to ask for.

    Args:
        optimizer: The class.
        arguments: What the config gives.
        params: Tensors, or groups of tensors or of pairs of a name and a tensor.
    """
    groups = [param if isinstance(param, dict) else {"params": [param]} for param in params]
    asked = {
        name for given in (arguments, *groups) for name in _IMPLEMENTATIONS if given.get(name) is not None
    }
    if asked or optimizer not in (torch.optim.Adam, torch.optim.AdamW):
        return dict(arguments)
    tensors = [item[1] if isinstance(item, tuple) else item for group in groups for item in group["params"]]
    fits = all(device.type in ("cpu", "cuda") for device in {tensor.device for tensor in tensors})
    fits = fits and all(dtype.is_floating_point for dtype in {tensor.dtype for tensor in tensors})
    fits = fits and all(map(_is_dense, tensors))
    if any(issubclass(kind, DTensor) for kind in {type(tensor) for tensor in tensors}):
        fits = fits and len({getattr(tensor, "device_mesh", None) for tensor in tensors}) == 1
    return {**arguments, "fused": True} if fits else dict(arguments)


def _is_dense(tensor: torch.Tensor) -> bool:
    channels_last = torch.channels_last
    return tensor.is_contiguous() or (tensor.ndim == 4 and tensor.is_contiguous(memory_format=channels_last))


_IMPLEMENTATIONS = ("fused", "foreach", "capturable", "differentiable")
