"""A model that was sharded on the meta device gets its shards, and initial values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from distopt import names
from distopt.errors import ConfigError, listed
from distopt.parallel.materialize import materialize
from distopt.parallel.whole import whole_parameters


def initialize_shards(model: nn.Module, device: torch.device) -> None:
    """Gives what a sharded `model` has on the meta device memory on `device`, and initial values.

    The values are those that `materialize` gives the model on one process with the same seed, bit by bit, in
    a world of any size: every rank draws all of them, one parameter after the other, and keeps its part. In
    the host's memory there are the shards and at most two whole parameters. Does nothing where all of `model`
    is real.

    Args:
        model: Sharded by `fully_shard`; its generators have the same state on every rank.
        device: Of the shards; other tensors go to the one that computes.

    Raises:
        ConfigError: As `materialize`, or a parameter was replaced; the same on every rank.
    """
    if not any(t.is_meta for t in chain(model.parameters(), model.buffers())):
        return
    sharded = _sharded(model)
    meshes = [parameter.device_mesh for parameter in sharded.values()]
    computing = torch.device(meshes[0].device_type) if meshes else device

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device if isinstance(tensor, DTensor) else computing)

    # Whatever is real was moved when it was sharded; initialised is on the CPU, by its generator.
    model._apply(lambda t: t if t.is_meta else t.cpu())  # type: ignore[no-untyped-call]
    with _authors_classes(model):
        materialize(model, whole_parameters)
    if replaced := sorted(sharded.keys() - _sharded(model)):
        problem = f"its initialisation put an unsharded parameter in the place of {listed(replaced)}"
        raise ConfigError("model", problem, allowed="what sets the values of the parameter that is there")
    model._apply(move)  # type: ignore[no-untyped-call]


def _sharded(model: nn.Module) -> dict[str, DTensor]:
    """FQN → parameter, of those that are sharded."""
    live = names.live_parameters(names.visits(model))
    return {fqn: parameter for fqn, parameter in live.items() if isinstance(parameter, DTensor)}


@contextmanager
def _authors_classes(model: nn.Module) -> Iterator[None]:
    """Sharded modules have a class made on the fly, `FSDPBlock`, which `type(module) is Block` would miss."""
    made = {module: type(module) for module in model.modules() if isinstance(module, FSDPModule)}
    try:
        for module, cls in made.items():
            module.__class__ = cls.__bases__[-1]
        yield
    finally:
        for module, cls in made.items():
            module.__class__ = cls
