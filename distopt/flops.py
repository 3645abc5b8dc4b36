"""What a model computes, and what a device could: for the share of it that is used (MFU)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import nn
from torch.func import functional_call
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from distopt.checkpoint import rng
from distopt.errors import describe
from distopt.objective import Objective

_BF16_PEAKS: Final = {
    "GB200": 2500e12,
    "B200": 2250e12,
    "B100": 1750e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H20": 148e12,
    "A100": 312e12,
    "A40": 150e12,
    "A30": 165e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L4": 121e12,
    "MI325X": 1307e12,
    "MI300X": 1307e12,
    "MI250X": 383e12,
}
"""Part of a device's name → FLOP/s of dense matrix products in bf16, from the vendors' data sheets; the first
that fits counts."""
_SHARE_OF_PEAK: Final = {"bf16": 1.0, "fp16": 1.0, "tf32": 0.5}


def peak(device: torch.device, precision: str) -> float | None:
    """FLOP/s of the device in matrix products; None where it is not known."""
    if device.type != "cuda":
        return None
    return peak_of(torch.cuda.get_device_name(device), precision)


def peak_of(name: str, precision: str) -> float | None:
    """The same of a device by its name: `NVIDIA H100 80GB HBM3`."""
    found = next((flops for part, flops in _BF16_PEAKS.items() if re.search(rf"\b{part}\b", name)), None)
    share = _SHARE_OF_PEAK.get(precision)
    return found and share and found * share


def of_batch(model: nn.Module, loss: Callable[[Any, Any], Any] | None, batch: Any) -> float | str:
    """FLOPs of forward and backward of a batch, without computing anything.

    Matrix products, convolutions and attention count, as the author wrote them: nothing for what activation
    checkpointing computes again. A model that cannot be run on the meta device gives the reason, as text.

    Args:
        model: Unwrapped; neither it nor its buffers are touched.
        loss: What takes its output and the target, where the model does not return its loss.
        batch: As the loaders give it.
    """
    state = {
        name: tensor.detach().to("meta").requires_grad_(tensor.requires_grad)
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }
    random_state = rng.capture()
    objective = Objective(_Stateless(model, state), loss)
    try:
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            loss_of = objective(tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), batch)).loss
            loss_of.backward()  # type: ignore[no-untyped-call]
    except Exception as error:
        return describe(error)
    finally:
        rng.restore(random_state)
    return float(counter.get_total_flops())


class _Stateless(nn.Module):
    """A model with other tensors in place of its own."""

    def __init__(self, model: nn.Module, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.forward = lambda *args, **kwargs: functional_call(model, state, args, kwargs, tie_weights=True)
