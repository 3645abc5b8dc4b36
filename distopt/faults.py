"""Stop signals: how Ctrl-C and a scheduler's SIGTERM end a run."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(BaseException):
    """A signal asked this process to end; like KeyboardInterrupt, no error that anything should handle."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    def __reduce__(self) -> tuple[type[Stopped], tuple[int]]:
        return type(self), (self.number,)


_received: int | None = None
_held = False


@contextmanager
def stop_signals() -> Iterator[None]:
    """Within it, SIGINT and SIGTERM raise `Stopped`: at once, or where `held_signals` lets them."""
    global _received
    before = {number: signal.signal(number, _on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if _received is None:  # else the process is about to end, and is not to be killed on its way
            for number, handler in before.items():
                signal.signal(number, handler)
        _received = None


@contextmanager
def held_signals() -> Iterator[None]:
    """Within it, a signal waits for the next `check_signals`, or for the end.

    Raised in the middle of anything, the exception gets lost in destructors, comes out of the writing of a
    checkpoint as another, or leaves the other ranks in a collective.
    """
    global _held
    _held = True
    try:
        yield
    except Exception as error:
        if _received is None:
            raise
        raise Stopped(_received) from error  # a rank that stopped before broke off what this one was in
    finally:
        _held = False
    check_signals()


@contextmanager
def deadly_signals() -> Iterator[None]:
    """Within it, a signal ends the process: for a wait in C++, which is deaf to Python's handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    end_on_signals()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_on_signals() -> None:
    """From now on a signal ends this process without a word: it has failed, and another one says why."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def check_signals() -> None:
    """Raises `Stopped` where a signal has come."""
    if _received is not None:
        raise Stopped(_received)


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _received
    # torchrun and Slurm repeat SIGTERM: what the first one began must not be broken off by the next.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _received = number
    if not _held:
        raise Stopped(number)
