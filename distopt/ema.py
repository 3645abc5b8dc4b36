"""The exponential moving average of a model's weights, sharded as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from distopt import names, parallel
from distopt.config import EmaConfig

INITIAL_SHARE = 0.05
"""Of the initial weights in the average at the end of a run: more is hardly meant."""


class Ema:
    """Averages the trained parameters of a model, and its running statistics, over optimizer steps.

    What never moves needs no average: frozen parameters and other buffers are the model's own wherever the
    average is used. It begins with the weights that are there. Averages of half precision are fp32, in
    which a thousandth of a difference is not lost.

    Args:
        model: As trained: wrapped, sharded.
        config: Of the run.
    """

    def __init__(self, model: nn.Module, config: EmaConfig) -> None:
        self.updates = 0
        self._model = model
        self._config = config
        self._live = _averaged_tensors(model)
        self.averages: dict[str, Tensor] = {}  # FQN → average, laid out as what it is of
        self._by_dtype: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for fqn, live in self._live.items():
            average = live.detach().to(torch.promote_types(live.dtype, torch.float32), copy=True)
            self.averages[fqn] = average
            lives, shards = self._by_dtype.setdefault(live.dtype, ([], []))
            lives.append(live)
            shards.append(_local(average))

    @property
    def decay(self) -> float:
        """How much of the average the next update keeps."""
        decay, n = self._config.decay, self.updates
        return min(decay, (1 + n) / (10 + n)) if self._config.warmup else decay

    @torch.no_grad()
    def update(self, unless: Tensor | bool = False) -> None:
        """Takes the weights as they are now into the average; to be called after each step.

        Args:
            unless: Whether the step was left out, and the average stays as it is: a scalar on the device
                where the host does not know. To the warm-up such a step counts.
        """
        if unless is True:
            return
        weight = 1 - self.decay
        for lives, averages in self._by_dtype.values():
            shards = [_local(live) for live in lives]
            dtype = averages[0].dtype
            if shards[0].dtype != dtype:
                shards = [shard.to(dtype) for shard in shards]
            if isinstance(unless, Tensor):
                on_device = torch.where(unless, 0.0, weight).to(dtype)
                torch._foreach_lerp_(averages, shards, [on_device] * len(averages))
            else:
                torch._foreach_lerp_(averages, shards, weight)
        self.updates += 1

    @torch.no_grad()
    def restart(self) -> None:
        """Begins anew with the weights as they are now."""
        self.updates = 0
        torch._foreach_copy_(self._shards(), self._live_shards())

    @contextmanager
    def applied(self) -> Iterator[None]:
        """For the block, which may raise, the model has the averages; then its own weights, bit for bit.

        Meanwhile there is a copy of these: of this rank's part, as large as its gradients, which are gone.
        """
        parallel.reshard(self._model)  # what FSDP has gathered is of its own weights
        live = self._live_shards()
        with torch.no_grad():
            own = [shard.clone() for shard in live]
            torch._foreach_copy_(live, self._shards())
        try:
            yield
        finally:
            parallel.reshard(self._model)
            with torch.no_grad():
                torch._foreach_copy_(live, own)

    def state_dict(self) -> dict[str, Tensor]:
        """FQN → average, the live tensors: sharded, or the same on every rank. Every rank calls it."""
        parallel.average_over_ranks(
            average for fqn, average in self.averages.items() if not isinstance(self._live[fqn], nn.Parameter)
        )
        return self.averages

    def _live_shards(self) -> list[Tensor]:
        """This rank's; found anew each time, since FSDP may move them where a state is loaded."""
        return [_local(live) for live in self._live.values()]

    def _shards(self) -> list[Tensor]:
        return [_local(average) for average in self.averages.values()]


def lint(config: EmaConfig | None, steps: int) -> list[str]:
    """Warnings of what is probably not meant, for a run of so many steps."""
    if config is None or config.warmup or config.decay**steps <= INITIAL_SHARE:
        return []
    share = f"{config.decay**steps:.0%}"
    return [
        f"ema.decay: at {config.decay:g} the initial weights are {share} of the average still after {steps:,}"
        " steps: a smaller decay, or ema.warmup, forgets them sooner"
    ]


def _averaged_tensors(model: nn.Module) -> dict[str, Tensor]:
    """FQN → live tensor, a tied one once, under its first name."""
    walk = names.visits(model)
    found: list[tuple[str, Tensor]] = [
        (fqn, parameter) for fqn, parameter in names.live_parameters(walk).items() if parameter.requires_grad
    ]
    for visit in walk:
        found += [(visit.prefix + name, t) for name, t in parallel.running_statistics(visit.module).items()]
    distinct: dict[int, tuple[str, Tensor]] = {}
    for fqn, tensor in found:
        distinct.setdefault(id(tensor), (fqn, tensor))
    return dict(distinct.values())


def _local(tensor: Tensor) -> Tensor:
    # Not to_local(), which gives a new view of a Parameter at each call.
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor
