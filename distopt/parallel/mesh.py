"""The device mesh, from which everything that is spread over ranks derives."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from distopt.config import StrategyConfig
from distopt.errors import ConfigError


def make_mesh(strategy: StrategyConfig, device: torch.device) -> DeviceMesh:
    """`(shard,)` for fsdp; `(replicate, shard)` for hsdp.

    Raises:
        ConfigError: The world cannot be cut like that.
    """
    world = dist.get_world_size()
    if strategy.type == "fsdp":
        return init_device_mesh(device.type, (world,), mesh_dim_names=("shard",))
    size = shard_size(strategy, world)
    return init_device_mesh(device.type, (world // size, size), mesh_dim_names=("replicate", "shard"))


def shard_size(strategy: StrategyConfig, world: int) -> int:
    """Ranks that share one copy of the model under hsdp.

    Raises:
        ConfigError: They do not divide the world.
    """
    size = strategy.shard_size or int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if world % size:
        raise ConfigError(
            "strategy.shard_size",
            f"does not divide the {world} ranks",
            given=size,
            allowed=", ".join(str(n) for n in range(1, world + 1) if world % n == 0),
        )
    return size
