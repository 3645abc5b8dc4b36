"""Steps whose loss or gradient is no finite number: left out, counted, and told of."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from distopt import comm, norms, parallel
from distopt.data import MicroBatch
from distopt.errors import listed

logger = logging.getLogger(__name__)


class Skips:
    """Says of each step whether it is to be left out, the same on every rank; counts, and tells of them.

    Args:
        optimizer: Whose groups have `param_names`.
        scaler: Leaves out steps by itself where it is enabled.
        statistics: Are put back with a step that is left out.
        limit: So many in a row are borne. At 0 none is left out.
        asks: Whether the host may wait for the device to know; on the CPU it need not wait.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        statistics: parallel.MovingStatistics,
        *,
        limit: int,
        asks: bool,
    ) -> None:
        self.limit = limit
        self.asks = asks
        self._optimizer, self._scaler, self._statistics = optimizer, scaler, statistics
        self._total: Tensor | int = 0
        self._in_row: Tensor | int = 0
        self._told = 0
        self._parameters: dict[str, list[str]] = {}  # by group; of the last one that the host has seen
        self._samples: list[int] = []

    def begin(self) -> None:
        """To be called before the forward of a step."""
        if self.limit:
            self._statistics.keep()

    def judge(self, norm: Tensor | None) -> Tensor | bool:
        """Whether to leave out the step: a scalar on the device where the host is not to ask.

        Args:
            norm: Of the gradient of all ranks; may be None where none is left out.
        """
        if norm is None or not self.limit:
            return False
        return not math.isfinite(norm.item()) if self.asks else ~norm.isfinite()

    def count(self, left_out: Tensor | bool) -> None:
        """To be called after the step, with what `judge` has said of it."""
        self._statistics.put_back(left_out)
        self._in_row = (self._in_row + 1) * left_out
        self._total = self._total + left_out

    def note(self, micro_batches: Sequence[MicroBatch], shares: Sequence[Tensor]) -> None:
        """Remembers what is to be told of a step that is left out; every rank calls it, before clipping.

        Args:
            micro_batches: This rank's.
            shares: The loss of each, as its gradient was taken.
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
