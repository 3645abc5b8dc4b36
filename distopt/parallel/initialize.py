"""A model that was sharded on the meta device gets its shards, and initial values."""

from __future__ import annotations

import torch
from torch import nn


def initialize_shards(model: nn.Module, device: torch.device) -> None:
    """Gives what a sharded `model` has on the meta device memory on `device`, and initial values.

    Does nothing where all of it is real.
    """
