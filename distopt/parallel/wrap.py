"""A model as it will be trained, and the few questions that training asks it.

The order of composition is this one, and only here: activation checkpointing around blocks, torch.compile of
them, FSDP's units around those or DDP around all, memory and initial values last.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from distopt.config import ActivationCheckpointingConfig, CompileConfig, StrategyConfig
from distopt.parallel.checkpointing import checkpoint_activations
from distopt.parallel.compilation import compile_model
from distopt.parallel.fully_shard import plan_shards, shard
from distopt.parallel.initialize import initialize_shards
from distopt.parallel.norm_layers import keep_norms_full
from distopt.parallel.precision import Precision
from distopt.parallel.replicate import replicate


def wrap(
    model: nn.Module,
    strategy: StrategyConfig,
    device: torch.device,
    *,
    precision: Precision = "fp32",
    checkpointing: ActivationCheckpointingConfig | None = None,
    compilation: CompileConfig | None = None,
) -> nn.Module:
    """The model as it will be trained, on `device`. Under all but single, gradients are means over ranks.

    Args:
        model: On the CPU, with the same weights on every rank; under fsdp and hsdp also on the meta device.
        strategy: How it is spread over ranks.
        device: This rank's own.
        precision: What the forward computes in.
        checkpointing: Which activations to compute anew in the backward.
        compilation: What to compile.

    Raises:
        ConfigError: Patterns that match nothing; what is on the meta device has no initial values.
    """
    if strategy.shards:
        keep_norms_full(model)
    if checkpointing is not None:
        checkpoint_activations(model, checkpointing)
    if compilation is not None:
        compile_model(model, compilation)
    if strategy.shards:
        shard(model, strategy, device, precision)
        initialize_shards(model, torch.device("cpu") if strategy.cpu_offload else device)
        return model
    model.to(device)
    return replicate(model, strategy, device) if strategy.type == "ddp" else model


def try_wrap(
    model: nn.Module,
    strategy: StrategyConfig,
    *,
    checkpointing: ActivationCheckpointingConfig | None = None,
    compilation: CompileConfig | None = None,
) -> None:
    """Finds what `wrap` will refuse, without a world. The model is of no use afterwards.

    Raises:
        ConfigError: As `wrap`, but for initial values.
    """
    if checkpointing is not None:
        checkpoint_activations(model, checkpointing)
    if compilation is not None:
        compile_model(model, compilation)
    if strategy.shards:
        plan_shards(model, strategy)


def gradient_sync(model: nn.Module, enabled: bool) -> AbstractContextManager[None]:
    """For one forward and backward: whether gradients are exchanged. Only the last micro-step needs it."""
    if isinstance(model, DistributedDataParallel) and not enabled:
        return model.no_sync()
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(enabled)
        model.set_is_last_backward(enabled)
    return nullcontext()


def reshard(model: nn.Module) -> None:
    """To be called after a forward that no backward follows: FSDP would keep some parameters whole.

    Those are the root's, and all with `reshard_after_forward: false`.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def release(model: nn.Module) -> None:
    """To be called when training is over, before the process group is destroyed: the model lets go of it.

    DDP's reducer would be the last to hold the group. Freed with the GIL held, it waits for a thread of
    gloo's that may be waiting for the GIL: a deadlock, which no signal ends. What holds the group in Python,
    as FSDP does, frees it without the GIL.
    """
    if isinstance(model, DistributedDataParallel):
        del model.logger, model.reducer, model.process_group
