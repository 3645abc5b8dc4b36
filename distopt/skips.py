"""Steps whose loss or gradient is no finite number: left out, counted, and told of."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from distopt import comm, norms, parallel
from distopt.data import MicroBatch
from distopt.errors import listed

logger = logging.getLogger(__name__)


class Skips:
    """Steps an optimizer, but not along a gradient that is no finite number; the same on every rank.

    Where the host knows that norm for nothing, on the CPU, it decides; a fused Adam on a GPU is told on the
    device, so that the host need not wait. For other optimizers there it waits.

    Args:
        optimizer: What steps; its groups have `param_names`.
        scaler: Leaves out steps by itself where it is enabled.
        statistics: Are put back with a step that is left out.
        limit: So many in a row are borne. At 0 none is left out.
        device: This rank's own.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        statistics: parallel.MovingStatistics,
        *,
        limit: int,
        device: torch.device,
    ) -> None:
        self.limit = limit
        self._optimizer, self._scaler, self._statistics = optimizer, scaler, statistics
        self._parts: Sequence[Any] = getattr(optimizer, "parts", [optimizer])
        self._on_device = device.type != "cpu" and all(map(_can_be_told, self._parts))
        self._total: Tensor | int = 0
        self._in_row: Tensor | int = 0
        self._told = 0
        self._parameters: dict[str, list[str]] = {}  # by group; of the last one that the host has seen
        self._samples: list[int] = []

    def begin(self) -> None:
        """To be called before the forward of a step."""
        if self.limit:
            self._statistics.keep()

    def step(self, norm: Tensor | None) -> Tensor | bool:
        """Steps, and returns whether it did not.

        Args:
            norm: Of the gradient of all ranks; may be None where none is left out.
        """
        if norm is None or not self.limit:
            self._scaler.step(self._optimizer)
            return False
        bad: Tensor | bool
        if self._on_device or self._scaler.is_enabled():
            bad = ~norm.isfinite()
            self._step_unless(bad)
        else:
            bad = not math.isfinite(norm.item())
            if not bad:
                self._optimizer.step()
        self._statistics.put_back(bad)
        self._in_row = (self._in_row + 1) * bad
        self._total = self._total + bad
        return bad

    def _step_unless(self, bad: Tensor) -> None:
        if self._scaler.is_enabled():  # it looks for itself
            self._scaler.step(self._optimizer)
            return
        for part in self._parts:
            part.found_inf = bad.float()
        try:
            self._optimizer.step()
        finally:
            for part in self._parts:
                del part.found_inf

    def note(self, micro_batches: Sequence[MicroBatch], shares: Sequence[Tensor]) -> None:
        """Remembers what is to be told of the step that was just left out; every rank calls it.

        Args:
            micro_batches: This rank's.
            shares: The loss of each, as its gradient was taken: there still are gradients.
        """
        self._parameters = norms.non_finite(self._optimizer.param_groups, gradients=True)
        losses = [share.isfinite().item() for share in shares]
        self._samples = [
            i
            for (_, _, ids), is_finite in zip(micro_batches, losses, strict=True)
            if not is_finite
            for i in ids
        ]

    def report(self, step: int) -> dict[str, int]:
        """What there is to record at a logged step; every rank calls it.

        Raises:
            FloatingPointError: More in a row were left out than are borne.
        """
        total = int(self._total)
        new, self._told = total - self._told, total
        if new:
            in_row = int(self._in_row)
            problem = f"{new} of the steps up to {step} left out ({total} in all): {self._why()}"
            # A loss scale that is still on its way down explains it.
            if in_row > self.limit and self._scaler.get_scale() <= 1:
                raise FloatingPointError(
                    f"{problem}; {in_row} in a row are more than max_skipped {self.limit}"
                )
            logger.warning(problem)
        return {"skipped": total} if total else {}

    def _why(self) -> str:
        """Of the last step left out that the host has seen."""
        everyones = comm.gather(self._samples)
        samples = [f"{listed([*map(str, ids)])} of rank {rank}" for rank, ids in enumerate(everyones) if ids]
        loss = f"no finite loss for samples {', '.join(samples)}; " if samples else ""
        groups = [f"{listed(fqns)} ({group})" for group, fqns in self._parameters.items()]
        return loss + (f"no finite gradient of {', '.join(groups)}" if groups else "too large a gradient")


def _can_be_told(part: torch.optim.Optimizer) -> bool:
    """Whether `found_inf` makes its step none. Fused SGD would leave its momentum uninitialised."""
    return isinstance(part, torch.optim.Adam) and all(group["fused"] for group in part.param_groups)
