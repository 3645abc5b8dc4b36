"""How fast the run is: time per optimizer step, samples and tokens per second, and the wait for data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar


class Batch(Protocol):
    """What the steps are taken on."""

    @property
    def samples(self) -> int:
        """In the global batch: the last of an epoch may be smaller."""


T = TypeVar("T", bound=Batch)


class Throughput:
    """Measures from one logged step to the next, without the time spent in `pause()`.

    It never synchronises with the device: the loss that the loop reads before it measures does.

    Args:
        step: Optimizer steps done so far. Time counts from here on.
        tokens_per_sample: Where the dataset says so.
        flops_per_sample: Where they are known, of forward and backward.
        world: Ranks.
        peak: FLOP/s of one rank's device, where they are known.
        clock: Seconds from any fixed point.
    """

    def __init__(
        self,
        step: int,
        tokens_per_sample: int | None = None,
        flops_per_sample: float | None = None,
        world: int = 1,
        peak: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._tokens_per_sample = tokens_per_sample
        self._flops_per_sample = flops_per_sample
        self._world, self._peak = world, peak
        self._clock = clock
        self._waited, self._samples = 0.0, 0
        self._step = step
        self._since = clock()
        self.step_time = 0.0
        """Seconds per step, as measured last."""

    def waiting(self, steps: Iterator[T]) -> Iterator[T]:
        """The same steps, with the wait for each counted as one for data, and its samples."""
        while True:
            began = self._clock()
            step = next(steps, None)
            self._waited += self._clock() - began
            if step is None:
                return
            self._samples += step.samples
            yield step

    @property
    def waited(self) -> float:
        """Seconds that this rank has waited for data since the last `measure`."""
        return self._waited

    def measure(self, step: int, waited: float = 0.0) -> dict[str, float]:
        """The rates since the last call.

        Args:
            step: Optimizer steps done; greater than at the last call.
            waited: `waited` of the rank that waited longest.

        Returns:
            A row's `perf`: `step_time` (seconds per step), `samples_per_second` and, where known,
            `tokens_per_second` of all ranks and of one, `tflops_per_rank` and `mfu`, its share of the
            device's peak; `data_wait`, the share of the time in which a rank waited for data.
        """
        now = self._clock()
        elapsed = now - self._since
        self.step_time = step_time = elapsed / (step - self._step)
        samples = self._samples / elapsed
        self._step, self._since = step, now
        self._waited, self._samples = 0.0, 0
        rates = {"step_time": step_time, "samples_per_second": samples}
        if self._tokens_per_sample is not None:
            tokens = samples * self._tokens_per_sample
            rates |= {"tokens_per_second": tokens, "tokens_per_second_per_rank": tokens / self._world}
        if self._flops_per_sample is not None:
            flops = samples * self._flops_per_sample / self._world
            rates["tflops_per_rank"] = flops / 1e12
            if self._peak is not None:
                rates["mfu"] = flops / self._peak
        return {**rates, "data_wait": min(1.0, waited / elapsed)}

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leaves the time inside out: evaluation, checkpoints."""
        began = self._clock()
        try:
            yield
        finally:
            self._since += self._clock() - began
