"""A rehearsal: the first batch forward and backward, so that mistakes are told before anything is written."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from distopt import comm, parallel
from distopt.checkpoint import rng
from distopt.errors import ConfigError
from distopt.objective import Objective, Outcome, scalars


class Habits(NamedTuple):
    """What a model returns each time, the same on every rank: what is collected of it needs collectives."""

    counts_items: bool
    """Whether it says `num_items`."""
    numbers: frozenset[str]
    """The loss, and the numbers beside it."""
    statistics: parallel.MovingStatistics
    """The buffers that a forward changes."""
    graph_breaks: tuple[str, ...] = ()
    """Where torch.compile could not go on: `net.py:12: why`."""


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
        ConfigError: As the objective; less than no items; DDP or FSDP would wait for gradients that never
            come; torch.compile gave up.
        RuntimeError: Ranks that return different numbers.
    """
    model = objective.model
    modules = [model, objective.loss] if isinstance(objective.loss, nn.Module) else [model]
    random_state = rng.capture()
    # FSDP keeps gradients of its own until it has exchanged them; a static graph is learned in an exchange.
    exchange = parallel.gradient_sync(
        model, enabled=isinstance(model, FSDPModule) or getattr(model, "static_graph", False)
    )
    with parallel.preserved_buffers(*modules) as before, exchange, parallel.compiling() as graph_breaks:
        with parallel.autocast(precision, device):
            outcome = objective(batch)
        _check_items(objective, outcome)
        parallel.check_same_used(model, outcome.loss)
        outcome.loss.backward()  # type: ignore[no-untyped-call]
        statistics = parallel.MovingStatistics(before)
    parallel.check_all_used(model)
    optimizer.zero_grad()
    rng.restore(random_state)
    habits = Habits(outcome.items is not None, frozenset(scalars(outcome)), statistics, tuple(graph_breaks))
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
