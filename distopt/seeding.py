"""Seeds: the same on every rank for the weights, one per rank for what happens after."""

from __future__ import annotations

import os
import random

import numpy as np
import torch


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seeds Python's, NumPy's and torch's generators (all devices) with `seed + rank`."""
    random.seed(seed + rank)
    np.random.seed((seed + rank) % 2**32)
    torch.manual_seed(seed + rank)


def make_deterministic() -> None:
    """`deterministic: true`: torch refuses operations that have no deterministic form."""
    # cuBLAS reads this when its first handle is made.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
