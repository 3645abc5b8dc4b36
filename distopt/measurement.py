"""What is measured of a logged step, by all ranks, as a row."""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from distopt.config import Config
from distopt.gradients import Taken
from distopt.monitor import Throughput
from distopt.spread import Spread
from distopt.stopwatch import Stopwatch

_GIB: Final = 2**30
_SETTINGS: Final[Mapping[str, Callable[[Mapping[str, Any]], Any]]] = {
    "lr": lambda group: group.get("lr"),
    "weight_decay": lambda group: group.get("weight_decay"),
    "momentum": lambda group: group["betas"][0] if "betas" in group else group.get("momentum") or None,
}
"""Quantity of `log.per_group` → how it is read from the optimizer's group; None where there is none."""


class Measurement:
    """Turns what a logged step has yielded into the row that is recorded of it. Every rank has one.

    Args:
        config: Of the run.
        optimizer: Whose groups have names.
        throughput: Of this run.
        hosts: By rank.
        device: This rank's own.
    """

    def __init__(
        self,
        config: Config,
        optimizer: torch.optim.Optimizer,
        throughput: Throughput,
        hosts: Sequence[str],
        device: torch.device,
    ) -> None:
        self._quantities = config.log.per_group
        self._groups = optimizer.param_groups
        self._throughput = throughput
        self._device = device
        # A sharded forward waits for other ranks' parameters; a backward always for their gradients.
        exchanges = config.strategy.shards or config.sync_batchnorm
        self._alone = ("data", "optimizer") if exchanges else ("data", "forward", "optimizer")
        self._memory = ("rss", "allocated", "reserved", "peak") if device.type == "cuda" else ("rss",)
        self._spread = Spread(hosts, self._alone)
        self.pace = 0.0
        """Seconds per step, as rank 0 has measured them before the newest row; the same on every rank."""

    def own(self, watch: Stopwatch) -> list[float]:
        """What this rank has to tell the others: for `row`, once it is exchanged."""
        parts = watch.seconds()
        alone = (parts.get(part, 0.0) for part in self._alone)
        return [self._throughput.step_time, self._throughput.waited, *_used(self._device), *alone]

    def row(
        self,
        step: int,
        epoch: int,
        means: Mapping[str, float],
        taken: Taken,
        watch: Stopwatch,
        everyones: NDArray[np.float64],
    ) -> dict[str, Any]:
        """The row of a step.

        Args:
            step: Optimizer steps done.
            epoch: Of the step.
            means: The loss, and the numbers beside it, over all ranks.
            taken: Of this step.
            watch: Which timed it.
            everyones: What `own` gave on each rank, of shape (ranks, values).
        """
        first = 2 + len(self._memory)
        self.pace = everyones[0, 0].item()
        _, waited, *memory = everyones[:, :first].max(0).tolist()
        row: dict[str, Any] = {"step": step, "epoch": epoch, "loss": means["loss"], **self._of_groups(taken)}
        row["perf"] = perf = self._throughput.measure(step, waited)
        row["time"] = watch.seconds()
        row["memory"] = {kind: size / _GIB for kind, size in zip(self._memory, memory, strict=True)}
        if len(everyones) > 1:
            row["ranks"] = self._spread.observe(everyones[:, first:], perf["step_time"])
        if len(means) > 1:
            row["train"] = {name: value for name, value in means.items() if name != "loss"}
        return row

    def _of_groups(self, taken: Taken) -> dict[str, Any]:
        """What the step used and met, by group, as `log.per_group` says; and the whole gradient's norm."""
        norms = [taken.group_norms, taken.param_norms, taken.update_norms]
        known = [norm for norm in norms if norm is not None]
        assert taken.grad_norm is not None
        total, *numbers = torch.cat([taken.grad_norm[None], *known]).tolist()  # one wait for the device
        size = len(self._groups)
        grads, params, updates = numbers[:size], numbers[size : 2 * size], numbers[2 * size :]
        ratios = [update / norm if norm else math.nan for update, norm in zip(updates, params, strict=True)]
        values = {quantity: [read(group) for group in self._groups] for quantity, read in _SETTINGS.items()}
        values |= {"grad_norm": grads, "param_norm": params, "update_ratio": ratios}
        found: dict[str, Any] = {"grad_norm": total}
        for quantity in self._quantities:
            key = "grad_norms" if quantity == "grad_norm" else quantity
            pairs = zip(self._groups, values[quantity], strict=False)
            if by_group := {group["name"]: float(value) for group, value in pairs if value is not None}:
                found[key] = by_group
        return found


def _used(device: torch.device) -> list[float]:
    """Bytes: of this process; on a GPU, allocated, reserved, and at most allocated since the last call."""
    file = os.open("/proc/self/statm", os.O_RDONLY)  # in a tenth of the time that a Path takes
    pages = int(os.read(file, 100).split()[1])
    os.close(file)
    used = [float(pages * resource.getpagesize())]
    if device.type == "cuda":
        used += [torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)]
        used.append(torch.cuda.max_memory_allocated(device))
        torch.cuda.reset_peak_memory_stats(device)
    return used
