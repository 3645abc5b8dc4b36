"""A stop that was asked for from outside, which all ranks take at the same step."""

from __future__ import annotations

import signal
import time
from datetime import timedelta
from typing import Final

import torch
import torch.distributed as dist

from distopt.faults import signal_received

PACE = 1.0
"""Seconds between two exchanges."""

_TIME_IS_UP: Final = signal.NSIG


class Interruption:
    """Whether a signal has come to any rank, or the time is up on rank 0.

    Ranks tell one another beside the training, about once a second, and all learn of it a step later. Make it
    on all ranks.

    Args:
        seconds: The time limit; None for none.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self._seconds = seconds
        self._began = time.monotonic()
        self._agreed = 0  # a signal's number, or _TIME_IS_UP
        self._every = 1
        self._calls = 0  # since the last exchange
        self._asked = torch.zeros(())
        self._exchange: dist.Work | None = None
        # On the training's group the exchange would stand in line with its collectives.
        self._group = dist.new_group(backend="gloo") if dist.get_world_size() > 1 else None

    def pace(self, seconds: float) -> None:
        """Says how long a step takes, the same number on every rank; 0 where that is not known."""
        self._every = max(1, int(PACE / seconds)) if seconds else 1

    def agreed(self) -> bool:
        """Whether to stop here. The same on every rank, where all ask equally often; it stays true."""
        if self._group is None:
            self._agreed = self._agreed or self._own()
        elif not self._agreed:
            self._calls += 1
            if self._exchange is not None:
                self._exchange.wait()
                self._exchange, self._agreed = None, int(self._asked)
            elif self._calls >= self._every:
                self._calls, self._asked = 0, torch.tensor(self._own())
                self._exchange = dist.all_reduce(
                    self._asked, dist.ReduceOp.MAX, group=self._group, async_op=True
                )
        return self._agreed != 0

    @property
    def reason(self) -> str:
        """`SIGTERM`, or `the time limit of 1:30:00`; to be asked for once it is agreed."""
        if self._agreed == _TIME_IS_UP:
            return f"the time limit of {timedelta(seconds=self._seconds or 0)}"
        return signal.Signals(self._agreed).name

    def _own(self) -> int:
        is_up = self._seconds is not None and time.monotonic() - self._began > self._seconds
        return signal_received() or (_TIME_IS_UP if is_up and dist.get_rank() == 0 else 0)
