"""What a model is asked in a step: one batch in, one loss out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from distopt.errors import ConfigError


def compute_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    """Runs `model` on a batch: a mapping gives keywords, a tuple or list arguments, else one argument.

    Returns:
        The loss, a scalar: what the model returned, or the `loss` of the mapping or object it returned.

    Raises:
        ConfigError: The model returned no scalar loss.
    """
    if isinstance(batch, Mapping):
        output = model(**batch)
    elif isinstance(batch, tuple | list):
        output = model(*batch)
    else:
        output = model(batch)
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", output)
    if not isinstance(loss, torch.Tensor) or loss.ndim != 0:
        shape = f" of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else ""
        raise ConfigError(
            "model",
            "forward returned no scalar loss",
            given=type(output).__name__ + shape,
            allowed="a 0-dimensional tensor, or a mapping or object with `loss`",
        )
    return loss
