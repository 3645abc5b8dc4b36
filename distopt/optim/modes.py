"""Optimizers that train other weights than they evaluate, and so have a `train()` and an `eval()`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch


def set_mode(optimizer: torch.optim.Optimizer, mode: Literal["train", "eval"]) -> None:
    """Calls `optimizer.train()` or `optimizer.eval()`, where it has them: those of schedulefree do."""
    switch = getattr(optimizer, mode, None)
    if switch is not None:
        switch()


@contextmanager
def evaluating(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Within it, the parameters are those to evaluate, save and export."""
    set_mode(optimizer, "eval")
    try:
        yield
    finally:
        set_mode(optimizer, "train")
