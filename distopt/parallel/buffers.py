"""Buffers: each rank's own while it trains, one and the same wherever a model is evaluated or saved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

STATISTICS = ("running_mean", "running_var")


def running_statistics(module: nn.Module) -> dict[str, Tensor]:
    """Name → buffer, of those that follow what a module (not its children) has seen in training."""
    return {name: buffer for name, buffer in _persistent_buffers(module) if name in STATISTICS}


@torch.no_grad()
def average_buffers(model: nn.Module) -> None:
    """Makes persistent buffers equal on all ranks: means of running statistics, rank 0's of everything else.

    BatchNorm's running statistics are of the samples that a rank has seen. One collective per dtype and kind.
    """
    if dist.get_world_size() == 1:
        return
    buffers = [named for module in model.modules() for named in _persistent_buffers(module)]
    average_over_ranks(buffer for name, buffer in buffers if name in STATISTICS)
    for alike in _by_dtype(buffer for name, buffer in buffers if name not in STATISTICS):
        packed = torch.cat([buffer.flatten() for buffer in alike])
        dist.broadcast(packed.view(torch.uint8), src=0)
        _unpack(packed, alike)


@torch.no_grad()
def average_over_ranks(tensors: Iterable[Tensor]) -> None:
    """Makes each the mean of all ranks' in place, by one collective per dtype; every rank calls it."""
    if dist.get_world_size() == 1:
        return
    for alike in _by_dtype(tensors):
        packed = torch.cat([tensor.flatten() for tensor in alike])
        dist.all_reduce(packed)
        _unpack(packed / dist.get_world_size(), alike)


class Kept(NamedTuple):
    """A buffer as it was."""

    home: dict[str, Tensor | None]
    """The `_buffers` of its module."""
    name: str
    buffer: Tensor
    values: Tensor
    """A copy."""


@contextmanager
def preserved_buffers(*modules: nn.Module) -> Iterator[list[Kept]]:
    """Puts all buffers back: their values, and themselves where a forward has replaced them."""
    before = [
        Kept(module._buffers, name, buffer, buffer.clone())
        for root in modules
        for module in root.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield before
    finally:
        with torch.no_grad():
            for home, name, buffer, values in before:
                home[name] = buffer.copy_(values)


class MovingStatistics:
    """The buffers of floats that a forward changes, and a copy of how they were.

    Args:
        before: What `preserved_buffers` gave, after a forward.
    """

    def __init__(self, before: Iterable[Kept] = ()) -> None:
        self._homes = [
            (home, name)
            for home, name, buffer, values in before
            if buffer.is_floating_point() and not isinstance(buffer, DTensor)
            if not torch.equal(home[name], values)  # type: ignore[arg-type]
        ]
        self._kept = torch.empty(0)

    def keep(self) -> None:
        """Takes the copy."""
        if self._homes:
            self._kept = torch.cat([buffer.flatten() for buffer in self._buffers()])

    def put_back(self, condition: Tensor | bool) -> None:
        """Makes them what they were where the condition holds, without asking a device whether it does."""
        if not self._homes or condition is False:
            return
        buffers = self._buffers()
        values = self._kept
        if isinstance(condition, Tensor):
            values = torch.where(condition, values, torch.cat([buffer.flatten() for buffer in buffers]))
        parts = torch.split(values, [buffer.numel() for buffer in buffers])
        torch._foreach_copy_(buffers, [part.view(b.shape) for part, b in zip(parts, buffers, strict=True)])

    def _buffers(self) -> list[Tensor]:
        """Those of now: a forward may have replaced them."""
        return [cast(Tensor, home[name]) for home, name in self._homes]


def _persistent_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, buffer in module._buffers.items():
        is_cache = name in module._non_persistent_buffers_set  # of any length
        if buffer is not None and not is_cache and not isinstance(buffer, DTensor):
            yield name, buffer


def _by_dtype(buffers: Iterable[Tensor]) -> list[list[Tensor]]:
    alike: dict[torch.dtype, list[Tensor]] = {}
    for buffer in buffers:
        alike.setdefault(buffer.dtype, []).append(buffer)
    return list(alike.values())


def _unpack(packed: Tensor, buffers: list[Tensor]) -> None:
    sizes = [buffer.numel() for buffer in buffers]
    for buffer, values in zip(buffers, torch.split(packed, sizes), strict=True):
        buffer.copy_(values.view_as(buffer))
