"""A model that was made on the meta device gets memory, and its initial values."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from distopt import names
from distopt.errors import ConfigError, describe, listed
from distopt.parallel.whole import WholeParameters


def materialize(model: nn.Module) -> None:
    """Gives what `model` has on the meta device memory on the CPU, and initial values.

    These are set by each module's `reset_parameters()`; then by the model's `init_weights()`, or by its
    `_init_weights(module)` on each module, where it has one. What else its constructor does to values is
    not known here. Ties stay, and so do the values of what is real already.

    Of a model that is sharded (FSDP2) each rank gets its shards, with the values that one process would have
    given to the whole: all ranks call this, with the same random state.

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
        if isinstance(model, FSDPModule):
            _allocate_shards(model)
        else:
            _allocate(unreal)
    shards = {t for module in unreal for t in _own(module) if isinstance(t, DTensor) and t not in real}
    try:
        with _authors_classes(model), WholeParameters(shards, _unset, _is_unset) as whole:
            _initialize(model, unreal)
    except Exception as error:
        raise ConfigError("model", f"its initialisation raised {describe(error)}") from error
    with torch.no_grad():
        for tensor, value in real.items():
            tensor.copy_(value)
    names.check_ties(model, tied, after="initialisation")
    empty = [
        visit.prefix + name
        for visit in walk
        for name, tensor in (visit.module._parameters | visit.module._buffers).items()
        if tensor is not None and visit.module in unreal and tensor not in real
        if (tensor in whole.unset if tensor in shards else _is_unset(tensor))
    ]
    if empty:
        raise ConfigError(
            "model",
            f"was made on the meta device, and nothing initialises {listed(empty)}",
            allowed="init_weights() of the model or reset_parameters() of its modules; or a model on the CPU",
        )


def _allocate_shards(model: FSDPModule) -> None:
    """As `to_empty` of the model, which would empty what is real, too."""
    made: dict[Tensor, Tensor] = {}

    def real(tensor: Tensor) -> Tensor:
        if not tensor.is_meta:
            return tensor
        if tensor not in made:
            made[tensor] = torch.empty_like(tensor, device="cpu")
            if not isinstance(tensor, DTensor):
                made[tensor].fill_(_unset(tensor))
        return made[tensor]

    model._apply(real)


def _allocate(modules: Iterable[nn.Module]) -> None:
    """Puts memory in the place of each meta tensor: one for one, so that what was tied still is."""
    made: dict[Tensor, Tensor] = {}
    for module in modules:
        for name, tensor in (module._parameters | module._buffers).items():
            if tensor is None or not tensor.is_meta:
                continue
            if tensor not in made:
                empty = torch.empty_like(tensor, device="cpu").fill_(_unset(tensor))
                is_parameter = isinstance(tensor, nn.Parameter)
                made[tensor] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
            if name in module._parameters:
                setattr(module, name, made[tensor])  # an RNN keeps its parameters in a list as well
            else:
                module._buffers[name] = made[tensor]


@contextmanager
def _authors_classes(model: nn.Module) -> Iterator[None]:
    """For the block, without the subclasses that FSDP2 makes.

    transformers takes them for a user's own code, whose modules without parameters it does not initialise.
    """
    sharded: list[nn.Module] = [module for module in model.modules() if isinstance(module, FSDPModule)]
    classes = {module: type(module) for module in sharded}
    for module in classes:
        module.__class__ = names.module_type(module)
    try:
        yield
    finally:
        for module, cls in classes.items():
            module.__class__ = cls


def _initialize(model: nn.Module, unreal: Collection[nn.Module]) -> None:
    done = set()

    def reset(module: nn.Module) -> None:
        if module in unreal and module not in done:
            done.add(module)
            for name in ("reset_parameters", "_reset_parameters"):  # the latter is MultiheadAttention's
                if callable(function := getattr(module, name, None)):
                    function()
                    return

    model.apply(reset)  # children first, as constructors do
    init_weights, init_module = getattr(model, "init_weights", None), getattr(model, "_init_weights", None)
    if callable(init_weights):
        init_weights()
    elif callable(init_module) and list(inspect.signature(init_module).parameters) == ["module"]:
        model.apply(init_module)


def _own(module: nn.Module) -> list[Tensor]:
    return [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]


def _unset(tensor: Tensor) -> float | int:
    """A value that no initialisation sets."""
    if tensor.is_floating_point() or tensor.is_complex():
        return float("nan")
    return True if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).max


def _is_unset(tensor: Tensor) -> bool:
    """Whether some of it is. Of a mask, where each value may be meant, whether all of it is."""
    if tensor.dtype == torch.bool:
        return bool(tensor.all())
    return bool((tensor.isnan() | (tensor == _unset(tensor))).any())
