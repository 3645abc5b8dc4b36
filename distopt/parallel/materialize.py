"""A model that was made on the meta device gets memory, and its initial values."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from distopt import names
from distopt.errors import ConfigError, listed


def materialize(model: nn.Module) -> None:
    """Gives what `model` has on the meta device memory on the CPU, and the values that its author meant.

    These are set by the model's `init_weights()` where it has one, else by each module's
    `reset_parameters()`. Ties stay. Does nothing to a model that is real.

    Raises:
        ConfigError: Something is left without a value, such as a buffer that only the constructor fills.
    """
    walk = names.visits(model)
    unreal = dict.fromkeys(visit.module for visit in walk if any(t.is_meta for t in _own(visit.module)))
    if not unreal:
        return
    tied = names.ties(walk)
    for module in unreal:
        module.to_empty(device="cpu", recurse=False)
    names.tie(model, tied)
    with torch.no_grad():
        for module in unreal:
            for tensor in _own(module):
                tensor.fill_(_unset(tensor))
    _initialize(model, unreal)
    names.check_ties(model, tied, after="initialisation")
    empty = [
        visit.prefix + name
        for visit in walk
        for name, tensor in (visit.module._parameters | visit.module._buffers).items()
        if tensor is not None and visit.module in unreal and _is_unset(tensor)
    ]
    if empty:
        raise ConfigError(
            "model",
            f"was made on the meta device, and nothing initialises {listed(empty)}",
            allowed="init_weights() of the model or reset_parameters() of its modules; or a model on the CPU",
        )


def _initialize(model: nn.Module, unreal: Iterable[nn.Module]) -> None:
    init_weights = getattr(model, "init_weights", None)
    if callable(init_weights):
        init_weights()
        return
    for module in unreal:
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()


def _own(module: nn.Module) -> list[Tensor]:
    return [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]


def _unset(tensor: Tensor) -> float | int:
    """A value that no initialisation sets."""
    if tensor.is_floating_point() or tensor.is_complex():
        return float("nan")
    return True if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).min


def _is_unset(tensor: Tensor) -> bool:
    """Whether some of it is. Of a mask, where each value may be meant, whether all of it is."""
    if tensor.dtype == torch.bool:
        return bool(tensor.all())
    return bool((tensor.isnan() | (tensor == _unset(tensor))).any())
