"""Buffers: each rank's own while it trains, one and the same wherever a model is evaluated or saved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

STATISTICS = ("running_mean", "running_var")


@torch.no_grad()
def average_buffers(model: nn.Module) -> None:
    """Makes persistent buffers equal on all ranks: means of running statistics, rank 0's of everything else.

    BatchNorm's running statistics are of the samples that a rank has seen. One collective per dtype and kind.
    """
    if dist.get_world_size() == 1:
        return
    buffers = [
        (name in STATISTICS, buffer)
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
        and name not in module._non_persistent_buffers_set  # caches, of any length
        and not isinstance(buffer, DTensor)
    ]
    for alike in _by_dtype(buffer for is_statistic, buffer in buffers if is_statistic):
        packed = torch.cat([buffer.flatten() for buffer in alike])
        dist.all_reduce(packed)
        _unpack(packed / dist.get_world_size(), alike)
    for alike in _by_dtype(buffer for is_statistic, buffer in buffers if not is_statistic):
        packed = torch.cat([buffer.flatten() for buffer in alike])
        dist.broadcast(packed.view(torch.uint8), src=0)
        _unpack(packed, alike)


@contextmanager
def preserved_buffers(*modules: nn.Module) -> Iterator[None]:
    """Puts all buffers back: their values, and themselves where a forward has replaced them."""
    before = [
        (module._buffers, name, buffer, buffer.clone())
        for root in modules
        for module in root.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for home, name, buffer, values in before:
                home[name] = buffer.copy_(values)


def _by_dtype(buffers: Iterable[Tensor]) -> list[list[Tensor]]:
    alike: dict[torch.dtype, list[Tensor]] = {}
    for buffer in buffers:
        alike.setdefault(buffer.dtype, []).append(buffer)
    return list(alike.values())


def _unpack(packed: Tensor, buffers: list[Tensor]) -> None:
    sizes = [buffer.numel() for buffer in buffers]
    for buffer, values in zip(buffers, torch.split(packed, sizes), strict=True):
        buffer.copy_(values.view_as(buffer))
