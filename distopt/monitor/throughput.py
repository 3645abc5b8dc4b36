"""How fast the run is: time per optimizer step, samples and tokens per second."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Throughput:
    """Measures from one logged step to the next, without the time spent in `pause()`.

    It never synchronises with the device: the loss that the loop reads before it measures does.

    Args:
        step: Optimizer steps done so far. Time counts from here on.
        samples_per_step: The global batch size.
        tokens_per_sample: Where the dataset says so.
        clock: Seconds from any fixed point.
    """

    def __init__(
        self,
        step: int,
        samples_per_step: int,
        tokens_per_sample: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._samples_per_step = samples_per_step
        self._tokens_per_sample = tokens_per_sample
        self._clock = clock
        self._step = step
        self._since = clock()
        self.step_time = 0.0
        """Seconds per step, as measured last."""

    def measure(self, step: int) -> dict[str, float]:
        """The rates since the last call.

        Args:
            step: Optimizer steps done; greater than at the last call.

        Returns:
            `step_time` (seconds per step), `samples_per_second` and, where known, `tokens_per_second`:
            a row's `perf`.
        """
        now = self._clock()
        self.step_time = step_time = (now - self._since) / (step - self._step)
        self._step, self._since = step, now
        rates = {"step_time": step_time, "samples_per_second": self._samples_per_step / step_time}
        if self._tokens_per_sample is not None:
            rates["tokens_per_second"] = rates["samples_per_second"] * self._tokens_per_sample
        return rates

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leaves the time inside out: evaluation, checkpoints."""
        began = self._clock()
        try:
            yield
        finally:
            self._since += self._clock() - began
