"""`strategy:` applied to a model, and the one question that training asks a wrapped model."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from distopt.parallel.units import find_units


def wrap(
    model: nn.Module,
    strategy: Literal["single", "ddp", "fsdp"],
    device: torch.device,
    *,
    find_unused_parameters: bool = False,
) -> nn.Module:
    """The model as it will be trained, on `device`. Under ddp and fsdp, gradients are means over ranks.

    Args:
        model: On the CPU, with the same weights on every rank.
        strategy: `fsdp` is FSDP2: every repeated block a unit, the rest with the root.
        device: This rank's own.
        find_unused_parameters: Under ddp: expect that some have no part in a loss.
    """
    if strategy == "fsdp":
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        for unit in find_units(model):
            fully_shard(unit, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model
    model.to(device)
    if strategy == "ddp":
        device_ids = [device.index] if device.type == "cuda" else None
        replica = DistributedDataParallel(
            model,
            device_ids=device_ids,
            gradient_as_bucket_view=True,
            find_unused_parameters=find_unused_parameters,
        )
        replica.broadcast_buffers = False  # as under FSDP2: see average_buffers
        return replica
    return model


def gradient_sync(model: nn.Module, enabled: bool) -> AbstractContextManager[None]:
    """For one forward and backward: whether gradients are exchanged. Only the last micro-step needs it."""
    if isinstance(model, DistributedDataParallel) and not enabled:
        return model.no_sync()
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(enabled)
        model.set_is_last_backward(enabled)
    return nullcontext()


def reshard(model: nn.Module) -> None:
    """To be called after a forward that no backward follows: FSDP would keep the root's parameters whole."""
    if isinstance(model, FSDPModule):
        model.reshard()


def release(model: nn.Module) -> None:
    """To be called when training is over, before the process group is destroyed: the model lets go of it.

    DDP's reducer would be the last to hold the group. Freed with the GIL held, it waits for a thread of
    gloo's that may be waiting for the GIL: a deadlock, which no signal ends. What holds the group in Python,
    as FSDP does, frees it without the GIL.
    """
    if isinstance(model, DistributedDataParallel):
        del model.logger, model.reducer, model.process_group
