"""Buffers: each rank's own while it trains, one and the same wherever a model is evaluated or saved."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor


@torch.no_grad()
def average_buffers(model: nn.Module) -> None:
    """Makes the buffers equal on all ranks: means of what is floating-point, rank 0's of everything else.

    BatchNorm's running statistics are of the samples that a rank has seen. One collective per dtype.
    """
    if dist.get_world_size() == 1:
        return
    by_dtype: dict[torch.dtype, list[torch.Tensor]] = {}
    for buffer in model.buffers():
        if not isinstance(buffer, DTensor):
            by_dtype.setdefault(buffer.dtype, []).append(buffer)
    for dtype, buffers in by_dtype.items():
        packed = torch.cat([buffer.flatten() for buffer in buffers])
        if dtype.is_floating_point:
            dist.all_reduce(packed)
            packed /= dist.get_world_size()
        else:
            dist.broadcast(packed.view(torch.uint8), src=0)
        sizes = [buffer.numel() for buffer in buffers]
        for buffer, values in zip(buffers, torch.split(packed, sizes), strict=True):
            buffer.copy_(values.view_as(buffer))
