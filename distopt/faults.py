"""Stop signals: how Ctrl-C and a scheduler's SIGTERM end a run; and the end of a launcher."""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
import time
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


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""What asks a run to stop: Ctrl-C, a scheduler's end of time, and what Slurm can be told to send before."""
_REPEATED = 1.0
"""Seconds within which a second SIGINT is the same one, that torchrun passes on."""

_received: int | None = None
_received_at = 0.0
_held = False
_ends = False


@contextmanager
def stop_signals() -> Iterator[None]:
    """Within it, the signals raise `Stopped`: at once, or where `held_signals` lets them."""
    global _received, _ends, _held
    _held = False
    before = {number: signal.signal(number, _on_signal) for number in SIGNALS}
    try:
        yield
    finally:
        # A process that was asked to end is about to, and is not to be killed on its way.
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if _ends else handler)
        _received, _ends, _held = None, False, False


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
    before = {number: signal.getsignal(number) for number in SIGNALS}
    end_on_signals()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def defer_signals() -> None:
    """From now on signals wait: this process has failed, and is to put that on record before it ends."""
    global _held
    _held = True


def end_on_signals() -> None:
    """From now on a signal ends this process without a word, as does one that has come already.

    It has failed, and another one says why.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    if _received is not None:
        signal.raise_signal(_received)


def end_with_parent() -> None:
    """From now on the kernel ends this process with the one that started it.

    A rank whose torchrun was killed would train on, unseen, beside the next start. It is killed rather than
    stopped: other nodes are to take it for lost and restart, not for a run that ends in good order.
    """
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def check_signals() -> None:
    """Raises `Stopped` where a signal has come."""
    if _received is not None:
        raise Stopped(_received)


def signal_received() -> int | None:
    """The number of a signal that has come, and is not obeyed yet."""
    return _received


def obey_signals() -> None:
    """What the signals asked for is done: none is raised any more."""
    global _received
    _received = None


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _received, _received_at, _ends
    # torchrun and Slurm repeat their signals: what the first one began must not be broken off by the next.
    if _ends:
        if number == signal.SIGINT and time.monotonic() - _received_at > _REPEATED:  # somebody insists
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)
        return
    _received, _received_at, _ends = number, time.monotonic(), True
    if not _held:
        raise Stopped(number)
