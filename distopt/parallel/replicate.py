"""DDP: a whole model on every rank, gradients averaged."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from distopt.config import StrategyConfig


def replicate(model: nn.Module, strategy: StrategyConfig, device: torch.device) -> nn.Module:
    """Wraps a model that is on `device` already."""
    replica = DistributedDataParallel(
        model,
        device_ids=[device.index] if device.type == "cuda" else None,
        bucket_cap_mb=strategy.bucket_cap_mb,
        gradient_as_bucket_view=True,
        find_unused_parameters=strategy.find_unused_parameters,
        static_graph=strategy.static_graph,
    )
    replica.broadcast_buffers = False  # as under FSDP2: see average_buffers
    if strategy.compress_gradients == "bf16":
        replica.register_comm_hook(None, default_hooks.bf16_compress_hook)
    return replica
