"""What a fused Adam does on the way: divide its gradients, or nothing at all if the device says so.

By the first, clipping saves a pass over all gradients; by the second, a step is left out without asking the
device. torch made both for its gradient scaler.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distopt.optim import steps_plain_tensors


def is_fused(optimizer: torch.optim.Optimizer) -> bool:
    """Whether `step` is for it, or for all of its parts.

    Fused SGD would leave its momentum uninitialised where its first step is none.
    """
    return all(
        type(part) in (torch.optim.Adam, torch.optim.AdamW)
        and all(group["fused"] for group in part.param_groups)
        and steps_plain_tensors(part)
        for part in _parts(optimizer)
    )


def step(
    optimizer: torch.optim.Optimizer, *, unless: Tensor | None = None, divisor: Tensor | None = None
) -> None:
    """Steps a fused optimizer.

    Args:
        optimizer: Of which `is_fused` is true.
        unless: Scalar; where it is true, nothing changes.
        divisor: Scalar, that gradients are divided by.
    """
    told = {"found_inf": None if unless is None else unless.float(), "grad_scale": divisor}
    given = {name: value for name, value in told.items() if value is not None}
    for part in _parts(optimizer):
        vars(part).update(given)
    try:
        optimizer.step()
    finally:
        for part in _parts(optimizer):
            for name in given:
                delattr(part, name)


def _parts(optimizer: Any) -> list[Any]:
    return getattr(optimizer, "parts", [optimizer])
