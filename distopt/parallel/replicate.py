"""DDP: a whole model on every rank, gradients averaged."""

# Annotations stay objects, no `from __future__`: DDP looks at those of its hook.
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import GradBucket  # type: ignore[attr-defined]
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
        replica.register_comm_hook(None, _average_in_bf16)
    return replica


def _average_in_bf16(_: object, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Half the bytes on the wire. As torch's bf16_compress_hook, which refuses every backend but NCCL."""
    buffer = bucket.buffer()
    compressed = buffer.to(torch.bfloat16).div_(dist.get_world_size())
    exchange = dist.all_reduce(compressed, async_op=True)
    assert exchange is not None
    done: torch.futures.Future[torch.Tensor] = exchange.get_future()
    return done.then(lambda future: buffer.copy_(future.value()[0]))
