"""What forward and loss are computed in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch

Precision = Literal["fp32", "tf32", "bf16", "fp16"]


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """The context for one forward; parameters, gradients and optimizer state are fp32 all the same."""
    dtype = dtype_of(precision)
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def dtype_of(precision: Precision) -> torch.dtype:
    """What tensors are in."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)


def set_matmul_precision(precision: Precision) -> None:
    """Lets matrix products of fp32 tensors round to TF32 on the way, or not, in this process."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
