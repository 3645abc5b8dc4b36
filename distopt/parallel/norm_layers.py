"""Norm layers whose parameters come gathered in half precision, and are computed with in full."""

from __future__ import annotations

from functools import update_wrapper
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def keep_norms_full(model: nn.Module) -> None:
    """Lets norms have their parameters in fp32 in the forward, whatever they are gathered in.

    As under the other strategies: autocast does not lower what norms have, and most refuse an input of fp32
    beside parameters of half precision, BatchNorm its own fp32 statistics. To be called before activations
    are checkpointed, which computes anew what is inside.
    """
    for module in model.modules():
        if isinstance(module, _NORMS) and any(p is not None for p in module._parameters.values()):
            # On the instance: names and classes stay.
            module.forward = _Full(module)  # type: ignore[method-assign]


class _Full:
    """The forward of a module that sees fp32 in the place of parameters of half precision."""

    def __init__(self, module: nn.Module) -> None:
        update_wrapper(self, module.forward)  # first, since it copies attributes
        self._module = module
        self._forward = module.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        parameters = self._module._parameters
        halves = {
            name: p
            for name, p in parameters.items()
            if p is not None and p.dtype in (torch.bfloat16, torch.float16)
        }
        try:
            for name, half in halves.items():
                parameters[name] = half.float()  # type: ignore[assignment]
            return self._forward(*args, **kwargs)
        finally:
            parameters.update(halves)
