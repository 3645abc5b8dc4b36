"""How a command ends when the user's input is wrong, or another rank has failed."""

from __future__ import annotations

import os
import sys
import time

from distopt.errors import ConfigError
from distopt.faults import end_on_signals

USER_ERROR = 2
FAULT = 1


def report(error: ConfigError) -> int:
    """Writes the message to stderr, once whatever the number of ranks, and returns the exit status.

    Rank 0 speaks, of what other ranks have seen as well (distopt.failures). These wait for torchrun to end
    them, which it does as soon as rank 0 is gone. What did not reach rank 0, since it waits for its GPU, they
    say after all. Of each other machine its first rank goes first.
    """
    rank = int(os.environ.get("RANK", "0"))
    message = f"{error}\n\n"
    if rank != 0:
        _linger(seconds=9 if os.environ.get("LOCAL_RANK") == "0" else 10)
        message = f"[rank {rank}] {message}"
    sys.stderr.write(message)  # in one piece: lines of two ranks would interleave
    sys.stderr.flush()
    return USER_ERROR


def follow() -> int:
    """The exit status of a rank that ends because another has failed, which is to be gone before.

    So it is the first that torchrun sees, and reports as the root cause.
    """
    _linger(seconds=10)
    return FAULT


def _linger(seconds: float) -> None:
    end_on_signals()
    time.sleep(seconds)
