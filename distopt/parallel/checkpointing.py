"""Activation checkpointing: activations that are computed anew in the backward instead of kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial, update_wrapper
from typing import Any

import torch
from torch import nn
from torch._ops import OpOverload
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from distopt.blocks import find_blocks
from distopt.config import ActivationCheckpointingConfig
from distopt.errors import ConfigError, nearest
from distopt.parallel.selection import select

KEY = "activation_checkpointing"

_MATMUL = (
    "mm",
    "bmm",
    "addmm",
    "baddbmm",
    "convolution",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)
"""The operators that most of a model's time goes into, whose results are worth their memory."""


def checkpoint_activations(model: nn.Module, config: ActivationCheckpointingConfig) -> None:
    """Lets the chosen modules keep their inputs alone; to be called before anything wraps the model.

    Modules, names and parameters stay what they are. Random numbers are the same in both forwards.

    Raises:
        ConfigError: A pattern or an operator that does not exist; a model without repeated blocks, or one
            that does this itself.
    """
    if getattr(model, "is_gradient_checkpointing", False):
        problem = "the model does that itself already (gradient_checkpointing_enable)"
        raise ConfigError(KEY, problem, allowed="one of both")
    saved = list(_operators(config.save)) if config.save else []
    context = partial(create_selective_checkpoint_contexts, saved) if saved else None
    for module in _chosen(model, config):
        # On the instance, and not a module around it: FQNs, classes and FSDP's units stay the author's, and
        # what FSDP gathers in the backward is there before it is computed with.
        module.forward = Recomputed(module.forward, context)


class Recomputed:
    """A forward whose activations are computed anew in the backward."""

    def __init__(self, forward: Callable[..., Any], context: Callable[[], Any] | None) -> None:
        self._forward = forward
        self._options: dict[str, Any] = {"use_reentrant": False}
        if context is not None:
            self._options["context_fn"] = context
        update_wrapper(self, forward)  # who looks at the signature sees the author's

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self._forward(*args, **kwargs)
        return checkpoint(self._forward, *args, **self._options, **kwargs)


def _chosen(model: nn.Module, config: ActivationCheckpointingConfig) -> Sequence[nn.Module]:
    if config.modules:
        return list(select(model, config.modules, f"{KEY}.modules").values())
    blocks = [block.module for block in find_blocks(model)]
    if not blocks:
        problem = "the model has no repeated blocks to apply it to"
        allowed = "{modules: […]}: names of classes, or patterns of FQNs"
        raise ConfigError(KEY, problem, given=type(model).__name__, allowed=allowed)
    return blocks[:: config.every]


def _operators(save: Sequence[str] | str) -> Iterator[OpOverload]:
    if isinstance(save, str):  # matmul
        yield from (getattr(torch.ops.aten, name).default for name in _MATMUL)
        return
    for name in save:
        namespace, _, operator = name.removesuffix(".default").partition(".")
        packet = getattr(getattr(torch.ops, namespace), operator, None) if operator else None
        if packet is None or not hasattr(packet, "default"):
            known = [f"aten.{known}" for known in dir(torch.ops.aten)]
            raise ConfigError(
                f"{KEY}.save",
                "torch has no such operator",
                given=name,
                allowed="matmul, or operators like aten.mm",
                suggestion=nearest(name, known),
            )
        yield packet.default
