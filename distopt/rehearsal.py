"""A rehearsal: the first batch forward and backward, so that mistakes are told before anything is written."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from distopt import comm, names, parallel
from distopt.checkpoint import rng
from distopt.errors import ConfigError
from distopt.objective import Objective, Outcome, scalars


class Habits(NamedTuple):
    """What a model returns each time, the same on every rank: what is collected of it needs collectives."""

    counts_items: bool
    """Whether it says `num_items`."""
    numbers: frozenset[str]
    """The loss, and the numbers beside it."""


def rehearse(
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    batch: Any,
    *,
    precision: parallel.Precision,
    device: torch.device,
) -> Habits:
    """Runs the model on a batch as training will, but for the step; leaves no trace in it.

    Raises:
        ConfigError: As the objective; less than no items; or DDP would wait for gradients that never come.
        RuntimeError: Ranks that return different numbers.
    """
    model = objective.model
    modules = [model, objective.loss] if isinstance(objective.loss, nn.Module) else [model]
    random_state = rng.capture()
    # FSDP keeps gradients of its own until it has exchanged them.
    exchange = parallel.gradient_sync(model, enabled=isinstance(model, FSDPModule))
    with parallel.preserved_buffers(*modules), exchange:
        with parallel.autocast(precision, device):
            outcome = objective(batch)
        _check_items(objective, outcome)
        outcome.loss.backward()  # type: ignore[no-untyped-call]
    if isinstance(model, DistributedDataParallel) and not model.find_unused_parameters:
        _check_all_used(model)
    optimizer.zero_grad()
    rng.restore(random_state)
    habits = Habits(outcome.items is not None, frozenset(scalars(outcome)))
    comm.agree(
        {
            "use of num_items": str(habits.counts_items),
            "numbers returned by the model": ", ".join(sorted(habits.numbers)),
        }
    )
    return habits


def _check_items(objective: Objective, outcome: Outcome) -> None:
    if outcome.items is None:
        return
    items = torch.as_tensor(outcome.items).detach().item()
    if not items >= 0:  # as no number is, either
        key = "model" if objective.loss is None else "loss"
        problem = "returned a num_items that is no number of items"
        raise ConfigError(key, problem, given=items, allowed="0 or more")


def _check_all_used(model: nn.Module) -> None:
    unused = [
        fqn
        for fqn, p in names.live_parameters(names.visits(model)).items()
        if p.requires_grad and p.grad is None
    ]
    if unused:
        more = f" and {len(unused) - 5} more" if len(unused) > 5 else ""
        raise ConfigError(
            "strategy",
            "ddp waits for a gradient of every parameter, and the first batch gave some of them none",
            given=", ".join(unused[:5]) + more,
            allowed="{type: ddp, find_unused_parameters: true}, which costs time; fsdp; or a model whose"
            " parameters all have a part in the loss, or requires_grad False",
        )
