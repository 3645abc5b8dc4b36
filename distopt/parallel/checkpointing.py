"""Activation checkpointing: activations that are computed anew in the backward instead of kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial, update_wrapper
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from distopt.blocks import find_blocks
from distopt.config import ActivationCheckpointingConfig
from distopt.errors import ConfigError, nearest
from distopt.parallel.buffers import STATISTICS
from distopt.parallel.selection import select

KEY = "activation_checkpointing"

Contexts = tuple[AbstractContextManager[Any], AbstractContextManager[Any]]
"""Of the forward, and of its recomputation."""

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

    Modules, names and parameters stay what they are. Random numbers are the same in both forwards, and so are
    the buffers that they begin with: running statistics count a batch once.

    Raises:
        ConfigError: A pattern or an operator that does not exist; a model without repeated blocks, or one
            that does this itself.
    """
    if getattr(model, "is_gradient_checkpointing", False):
        problem = "the model does that itself already (gradient_checkpointing_enable)"
        raise ConfigError(KEY, problem, allowed="one of both")
    for module in model.modules():
        if getattr(getattr(module, "config", None), "use_cache", None) is True:
            # A cache of keys and values, which nobody reads in training, would get them twice.
            module.config.use_cache = False  # type: ignore[union-attr]
    saved = list(_operators(config.save)) if config.save else []
    context = partial(create_selective_checkpoint_contexts, saved) if saved else None
    for module in _chosen(model, config):
        # On the instance, and not a module around it: FQNs, classes and FSDP's units stay the author's, and
        # what FSDP gathers in the backward is there before it is computed with.
        module.forward = Recomputed(module, context)


class Recomputed:
    """The forward of a module whose activations are computed anew in the backward."""

    def __init__(self, module: nn.Module, context: Callable[[], Contexts] | None) -> None:
        # Who looks at the signature sees the author's. First, since it copies attributes.
        update_wrapper(self, module.forward)
        self._module = module
        self._forward = module.forward
        self._context = context

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self._forward(*args, **kwargs)
        context = self._context
        if next(self._module.buffers(), None) is not None and not torch.compiler.is_compiling():
            context = partial(_with_buffers, self._module, context)
        options: dict[str, Any] = {"use_reentrant": False}
        if context is not None:
            options["context_fn"] = context
        return checkpoint(self._forward, *args, **options, **kwargs)


def _with_buffers(module: nn.Module, context: Callable[[], Contexts] | None) -> Contexts:
    forward, again = context() if context else (nullcontext(), nullcontext())
    first = _First(module, forward)
    return first, _Again(first, again)


class _First:
    """Around a forward: notes the buffers that it changes, as they were."""

    def __init__(self, module: nn.Module, inner: AbstractContextManager[Any]) -> None:
        self.changed: list[tuple[dict[str, Tensor | None], str, Tensor]] = []
        self._module = module
        self._inner = inner

    def __enter__(self) -> None:
        self._before = [
            (module._buffers, name, buffer, buffer._version, buffer.clone())
            for module in self._module.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        self._inner.__enter__()

    def __exit__(self, *error: Any) -> bool | None:
        before, self._before = self._before, []
        self.changed = [
            (home, name, values)
            for home, name, buffer, version, values in before
            # Batch norms do not count a new version of what they change.
            if home.get(name) is not buffer or buffer._version != version or name in STATISTICS
        ]
        return self._inner.__exit__(*error)


class _Again:
    """Around the recomputation: copies stand in for them: it begins with the same, and changes none."""

    def __init__(self, first: _First, inner: AbstractContextManager[Any]) -> None:
        self._first = first
        self._inner = inner

    def __enter__(self) -> None:
        self._live = [(home, name, home.get(name)) for home, name, _ in self._first.changed]
        for home, name, values in self._first.changed:
            home[name] = values.clone()
        self._inner.__enter__()

    def __exit__(self, *error: Any) -> bool | None:
        for home, name, buffer in self._live:
            home[name] = buffer
        return self._inner.__exit__(*error)


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
