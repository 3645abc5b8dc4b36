"""A model that was made on the meta device gets memory, and its initial values."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from distopt import comm, names
from distopt.errors import ConfigError, describe, listed

Around = Callable[[set[Tensor]], AbstractContextManager[Any]]
"""What is entered while initial values are set; it is told which tensors have none yet."""


def materialize(model: nn.Module, around: Around = nullcontext) -> None:
    """Gives what `model` has on the meta device memory on the CPU, and initial values.

    These are set by each module's `reset_parameters()`; then by the model's `init_weights()`, or by its
    `_init_weights(module)` on each module, where it has one. What else its constructor does to values is
    not known here. Ties stay, and so do the values of what is real already.

    Args:
        model: Sharded ones take more than this: see `initialize_shards`.
        around: Entered around all that sets initial values.

    Raises:
        ConfigError: Something is left without a value, such as a buffer that only the constructor fills.
    """
    walk = names.visits(model)
    unreal = dict.fromkeys(visit.module for visit in walk if any(t.is_meta for t in _own(visit.module)))
    if not unreal:
        return
    tied = names.ties(walk)
    with torch.no_grad():
        real = {t: t.clone() for visit in walk for t in _own(visit.module) if not t.is_meta}
        made = _allocate(unreal)
    try:
        with around(made):
            _initialize(names.unwrap(model), unreal)
    except Exception as error:
        raise ConfigError("model", f"its initialisation raised {describe(error)}") from error
    with torch.no_grad():
        for tensor, value in real.items():
            tensor.copy_(value)
    names.check_ties(model, tied, after="initialisation")
    empty = _without_value(
        {
            visit.prefix + name: tensor
            for visit in walk
            for name, tensor in (visit.module._parameters | visit.module._buffers).items()
            if tensor is not None and visit.module in unreal and tensor not in real
        }
    )
    if empty:
        raise ConfigError(
            "model",
            f"was made on the meta device, and nothing initialises {listed(empty)}",
            allowed="init_weights() of the model or reset_parameters() of its modules; or a model on the CPU",
        )


def _allocate(modules: Iterable[nn.Module]) -> set[Tensor]:
    """Puts memory in the place of each meta tensor: one for one, so that what was tied still is."""
    made: dict[Tensor, Tensor] = {}
    for module in modules:
        for name, tensor in (module._parameters | module._buffers).items():
            if tensor is None or not tensor.is_meta:
                continue
            if tensor not in made:
                empty = torch.empty_like(tensor, device="cpu").fill_(unset(tensor.dtype))
                is_parameter = isinstance(tensor, nn.Parameter)
                made[tensor] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
            if name in module._parameters:
                setattr(module, name, made[tensor])  # an RNN keeps its parameters in a list as well
            else:
                module._buffers[name] = made[tensor]
    return set(made.values())


def _initialize(model: nn.Module, unreal: Iterable[nn.Module]) -> None:
    for module in unreal:
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
    init_weights, init_module = getattr(model, "init_weights", None), getattr(model, "_init_weights", None)
    if callable(init_weights):
        init_weights()
    elif callable(init_module) and list(inspect.signature(init_module).parameters) == ["module"]:
        _apply(model, init_module)


def _apply(module: nn.Module, function: Callable[[nn.Module], object]) -> None:
    """As `module.apply(function)`, which would come to wrappers too."""
    for child in module.children():
        _apply(names.unwrap(child), function)
    function(module)


def _own(module: nn.Module) -> list[Tensor]:
    return [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]


def unset(dtype: torch.dtype) -> float | int:
    """A value that no initialisation sets."""
    if dtype.is_floating_point or dtype.is_complex:
        return float("nan")
    return True if dtype == torch.bool else torch.iinfo(dtype).max


def _without_value(tensors: Mapping[str, Tensor]) -> list[str]:
    """Those of which some is unset still. Of masks, where each value may be meant, those that wholly are.

    Of sharded tensors each rank sees its part; all come to the same answer.
    """
    counts = [_count(t.to_local() if isinstance(t, DTensor) else t) for t in tensors.values()]
    meshes = [t.device_mesh for t in tensors.values() if isinstance(t, DTensor)]
    if meshes:
        counts = comm.sum_over_ranks(counts, torch.device(meshes[0].device_type))
    return [
        fqn
        for (fqn, tensor), count in zip(tensors.items(), counts, strict=True)
        if (count > 0) != (tensor.dtype == torch.bool)
    ]


def _count(tensor: Tensor) -> float:
    """How many of its values are unset; of a mask, how many are set."""
    if tensor.dtype == torch.bool:
        return float((~tensor).sum())
    return float((tensor.isnan() | (tensor == unset(tensor.dtype))).sum())
