"""How a command ends when the user's input is wrong."""

from __future__ import annotations

import os
import sys
import time

from distopt.errors import ConfigError
from distopt.faults import end_on_signals

USER_ERROR = 2


def report(error: ConfigError) -> int:
    """Writes the message to stderr, once whatever the number of ranks, and returns the exit status.

    Rank 0 speaks, of what other ranks have seen as well (distopt.mistakes). These wait for torchrun to end
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


def _linger(seconds: float) -> None:
    end_on_signals()
    time.sleep(seconds)
