"""Evaluation: the mean loss over a dataset, exact on any number of ranks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from distopt import comm, names
from distopt.objective import compute_loss


def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Any, int]],
    device: torch.device,
    precision: AbstractContextManager[Any],
) -> dict[str, float]:
    """Evaluates `model`; its modules are in evaluation mode meanwhile.

    Args:
        model: As trained; every rank calls this, with equally many batches.
        batches: This rank's, each with the number of its samples (0 for one that only keeps step).
        device: This rank's own.
        precision: The autocast context of training.

    Returns:
        `loss`: the mean over all samples of all ranks.
    """
    # DDP's own forward would exchange buffers; FSDP's forward, which gathers parameters, stays.
    module = names.unwrap(model)
    total = torch.zeros((), dtype=torch.float64, device=device)
    samples = 0
    with _evaluating(module), torch.no_grad(), precision:
        for batch, weight in batches:
            total += weight * compute_loss(module, batch)
            samples += weight
    total_loss, total_samples = comm.sum_over_ranks([total, samples], device)
    return {"loss": total_loss / total_samples}


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the block; afterwards each module's own, since some may be frozen in theirs."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
