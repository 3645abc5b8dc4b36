"""The device mesh, from which everything that is spread over ranks derives."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from distopt.config import StrategyConfig, shard_size


def make_mesh(strategy: StrategyConfig, device: torch.device) -> DeviceMesh:
    """`(shard,)` for fsdp; `(replicate, shard)` for hsdp, whose copies are on neighbouring ranks."""
    world = dist.get_world_size()
    size = shard_size(strategy, world)
    if strategy.type == "hsdp":
        shape, dims = (world // size, size), ("replicate", "shard")
        return init_device_mesh(device.type, shape, mesh_dim_names=dims)
    return init_device_mesh(device.type, (size,), mesh_dim_names=("shard",))
