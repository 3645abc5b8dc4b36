"""DDP: a whole model on every rank, gradients averaged."""

# Annotations stay objects, no `from __future__`: DDP looks at those of its hook.
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

from distopt import names
from distopt.config import StrategyConfig
from distopt.errors import ConfigError, listed


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


def check_all_used(model: nn.Module) -> None:
    """To be called after the first backward, where nothing was exchanged.

    Raises:
        ConfigError: DDP would wait for gradients that did not come.
    """
    if not isinstance(model, DistributedDataParallel) or model.find_unused_parameters or model.static_graph:
        return
    if _unused(model):
        raise _waits(model, "the first batch")


def check_exchanged(model: nn.Module) -> None:
    """To be called after a backward in which gradients are exchanged: DDP complains a step too late.

    Raises:
        ConfigError: DDP still waits for gradients that did not come: nothing, or a part, was exchanged.
    """
    if isinstance(model, DistributedDataParallel):
        try:
            model._check_reducer_finalized()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise _waits(model, "this step") from error


def _unused(model: nn.Module) -> list[str]:
    live = names.live_parameters(names.visits(model))
    return [fqn for fqn, p in live.items() if p.requires_grad and p.grad is None]


def _waits(model: DistributedDataParallel, when: str) -> ConfigError:
    expected = "those of the first step" if model.static_graph else "every parameter"
    return ConfigError(
        "strategy.static_graph" if model.static_graph else "strategy",
        f"ddp waits for gradients of {expected}, and {when} gave some of them none",
        given=listed(_unused(model)) or "parameters that an earlier micro-step used",
        allowed="{type: ddp, find_unused_parameters: true}, which costs time; or a model whose"
        " parameters all have a part in the loss, or requires_grad False",
    )
