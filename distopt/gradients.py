"""Micro-batches in, one optimizer step: forward, backward, accumulation, clipping."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from distopt import fused, norms, parallel
from distopt.config import ClipGradConfig
from distopt.data import Step
from distopt.errors import ConfigError
from distopt.means import Means
from distopt.objective import Objective, Outcome, scalars
from distopt.profiling import Regions
from distopt.rehearsal import Habits, rehearse
from distopt.skips import Skips
from distopt.stopwatch import Stopwatch


class Taken(NamedTuple):
    """What is known of a step that was taken; None and empty where it was not to be measured."""

    means: Means | None = None
    """The loss and the other scalars, over this rank's micro-batches."""
    grad_norm: Tensor | None = None
    """Of the gradient of all ranks, before clipping."""
    group_norms: Tensor | None = None
    """The same of each of the optimizer's groups: (groups,)."""
    param_norms: Tensor | None = None
    """Of each group's parameters, before the step: (groups,)."""
    update_norms: Tensor | None = None
    """Of what the step added to them."""
    loss_scale: Tensor | None = None
    """What the loss was multiplied by, with fp16."""
    left_out: Tensor | bool = False
    """Whether the step was left out, as `Skips.judge` says it; known whether measured or not."""


class GradientStep:
    """Takes optimizer steps along the gradient of the mean over all items of the global batch.

    The batch is spread over ranks and micro-batches of any size; what counts as an item is what the model
    says in `num_items` (unmasked tokens), or else a sample.

    Args:
        objective: The wrapped model, whose gradients are means over ranks, and its loss.
        optimizer: Steps the parameters.
        precision: What the forward computes in; with fp16 the loss is scaled so that gradients do not
            underflow, and a step whose gradients overflow is left out.
        clip: None for no clipping.
        max_skipped: See `Skips`.
        measures_updates: Whether a measured step finds the norms of parameters and updates, for which it
            takes a copy of this rank's parameters.
        device: This rank's own.
    """

    def __init__(
        self,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        *,
        precision: parallel.Precision,
        clip: ClipGradConfig | None,
        max_skipped: int = 0,
        measures_updates: bool = False,
        device: torch.device,
    ) -> None:
        self.objective = objective
        self.optimizer = optimizer
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self._precision = precision
        self._clip_config = clip
        self._device = device
        self._max_skipped = max_skipped
        self._measures_updates = measures_updates
        self._world = dist.get_world_size()
        is_fused = fused.is_fused(optimizer) and not self.scaler.is_enabled()
        self._fused_step = fused.FusedStep(optimizer) if is_fused else None
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._norms = norms.GroupNorms(optimizer.param_groups)
        self._habits: Habits
        self.skips: Skips

    def rehearse(self, step: Step) -> Habits:
        """Learns what the model returns from the first micro-batch; to be called once, before any step.

        Raises:
            ConfigError: What is wrong with the model or its loss.
        """
        batch = step.micro_batches[0].batch
        self._habits = rehearse(
            self.objective, self.optimizer, batch, precision=self._precision, device=self._device
        )
        self.skips = Skips(
            self.optimizer,
            self.scaler,
            self._habits.statistics,
            limit=self._max_skipped,
            asks=not self.scaler.is_enabled() and not (self._fused_step and self._device.type == "cuda"),
        )
        return self._habits

    def take(self, step: Step, watch: Stopwatch | None = None, regions: Regions | None = None) -> Taken:
        """Takes a step, and leaves no gradients.

        Args:
            step: This rank's micro-batches of a global batch; equally many on every rank.
            watch: Times its parts. Where there is one, what `Taken` tells is found out as well.
            regions: Names its parts, where it is traced.

        Raises:
            ConfigError: The model does not return what it did at first, or uses fewer parameters than DDP
                waits for.
        """
        mark: Callable[[str], None] = watch.mark if watch else _no_mark
        if regions:
            mark = regions.beside(mark)
        means = Means(self._device, self._habits.numbers) if watch else None
        model = self.objective.model
        items: Tensor | float = 0
        shares: list[Tensor] = []
        self.skips.begin()
        for i, (batch, samples, _) in enumerate(step.micro_batches):
            mark("forward")
            is_last = i == len(step.micro_batches) - 1
            # A dummy is normalised like any batch, but its statistics are nobody's.
            buffers = nullcontext() if samples else parallel.preserved_buffers(model)
            with parallel.gradient_sync(model, enabled=is_last), buffers:
                with parallel.autocast(self._precision, self._device):
                    outcome = self.objective(batch)
                    weight = self._weight(outcome, samples)
                    share = self._share(outcome.loss, weight, step.samples)
                mark("backward")
                self.scaler.scale(share).backward()  # type: ignore[no-untyped-call]
            items = items + weight
            shares.append(share.detach())
            if means is not None:
                means.add(scalars(outcome), weight)
        mark("norms")
        parallel.check_exchanged(model)
        self.scaler.unscale_(self.optimizer)
        if self._habits.counts_items:
            self._divide_by_items(items, step.samples)
        found = self._gradient_norms(measure=watch is not None)
        norm = None if found is None else norms.total_norm(found)
        left_out = self.skips.judge(norm)
        if (watch or isinstance(left_out, bool)) and left_out:
            self.skips.note(step.micro_batches, shares)
        before = self._norms.copied() if watch and self._measures_updates else None
        scale = self._loss_scale() if watch else None
        if left_out is not True:
            divisor = self._clip(found, norm)
            mark("optimizer")
            self._step(left_out, divisor)
        mark("other")
        self.skips.count(left_out)
        for parameter in self._parameters:  # as zero_grad does, in a tenth of its time
            parameter.grad = None
        if watch is None:
            return Taken(left_out=left_out)
        of_params, of_updates = (None, None) if before is None else self._norms.of_updates(before)
        return Taken(means, norm, found, of_params, of_updates, scale, left_out)

    def _weight(self, outcome: Outcome, samples: int) -> Tensor | float:
        """The items of a micro-batch; a dummy has none."""
        if self._habits.counts_items != (outcome.items is not None):  # not all ranks might sum them up
            raise ConfigError("model", "returns num_items only at times", allowed="always, or never")
        if outcome.items is None or samples == 0:
            return samples
        return outcome.items

    def _share(self, loss: Tensor, weight: Tensor | float, samples: int) -> Tensor:
        """A micro-batch's part in the loss whose gradient is averaged over ranks, as if items were samples.

        So without `num_items` it is done; with them, the whole is divided by their number at the end, when
        it is known.
        """
        factor: Tensor | float = self._world / samples
        if not self._habits.counts_items:
            factor *= weight
        else:
            if not isinstance(weight, Tensor):
                weight = torch.full((), weight, device=self._device)
            loss = torch.where(weight > 0, loss * weight, 0.0)  # the mean over no items is no number
        if self._max_skipped:
            factor = _unless_bad(loss, factor)
        return loss if isinstance(factor, float) and factor == 1 else loss * factor

    @torch.no_grad()
    def _divide_by_items(self, items: Any, samples: int) -> None:
        total = torch.as_tensor(items, dtype=torch.float32, device=self._device)
        dist.all_reduce(total)
        factor = samples / torch.where(total > 0, total, 1)
        if grads := norms.local_gradients(self._parameters):
            torch._foreach_mul_(grads, factor.to(grads[0].device))  # which may be offloaded

    def _gradient_norms(self, measure: bool) -> Tensor | None:
        """Those of the groups, where anybody asks for them."""
        clips = self._clip_config is not None and self._clip_config.max_norm is not None
        if measure or clips or self._max_skipped:
            return self._norms.of_gradients()
        return None

    def _loss_scale(self) -> Tensor | None:
        """That of this step, as a scalar on the device; the scaler's `get_scale` would wait for it."""
        return self.scaler.scale(torch.ones((), device=self._device)) if self.scaler.is_enabled() else None

    def _clip(self, of_groups: Tensor | None, norm: Tensor | None) -> Tensor | None:
        """Clips gradients; or returns what a fused optimizer is to divide them by."""
        groups, clip = self.optimizer.param_groups, self._clip_config
        if clip and clip.max_norm is not None:
            of_what = of_groups if clip.per_group else norm
            assert of_what is not None
            if self._fused_step and not clip.per_group:
                return norms.divisor(of_what, clip.max_norm)
            norms.clip_by_norm(groups, of_what, clip.max_norm)
        if clip and clip.max_value is not None:
            norms.clip_by_value(groups, clip.max_value)
        return None

    def _step(self, left_out: Tensor | bool, divisor: Tensor | None) -> None:
        if self._fused_step:
            self._fused_step(unless=left_out if isinstance(left_out, Tensor) else None, divisor=divisor)
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()


def _no_mark(part: str) -> None:
    """Of a step that is not timed."""


def _unless_bad(loss: Tensor, factor: Tensor | float) -> Tensor | float:
    """A factor that makes all gradients no numbers, on all ranks, where the loss is no finite number."""
    if loss.device.type == "cpu":
        return factor if math.isfinite(loss.item()) else math.nan
    return torch.where(loss.detach().isfinite(), factor, math.nan)
