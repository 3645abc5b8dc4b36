"""How ranks talk where no process group may be possible: through the store that the launcher keeps."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import timedelta
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Self, TypeVar
from uuid import uuid4

import torch.distributed as dist
from torch.distributed import HashStore, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from distopt import rounds

T = TypeVar("T")

_ROUND = "distopt doctor"
"""The key under which rank 0 names this meeting."""


class Meeting:
    """What each rank tells the others.

    Args:
        store: All ranks' own, and empty.
        rank: Of this process.
        size: Of the world.
        timeout: Seconds to wait for what another rank is to tell.
    """

    def __init__(self, store: Store, rank: int, size: int, timeout: float) -> None:
        self.rank = rank
        self.size = size
        self.timeout = timeout
        self._store = store
        self._store.set_timeout(timedelta(seconds=timeout))

    @classmethod
    def open(cls, timeout: float) -> Self:
        """By the environment of torchrun or any other launcher; without one this process is alone.

        Raises:
            RuntimeError: There is nobody at MASTER_ADDR, or rank 0 has not come there.
        """
        rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        if "RANK" not in os.environ:
            return cls(HashStore(), rank, size, timeout)
        store = rounds.agent_store() or TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=rank == 0,
            wait_for_workers=False,
            timeout=timedelta(seconds=timeout),
        )
        # Not rounds.new_round, which raises where ranks are missing: the others are to be examined.
        if rank == 0:
            store.set(_ROUND, uuid4().hex)
        store.set_timeout(timedelta(seconds=timeout))
        return cls(PrefixStore(store.get(_ROUND).decode(), store), rank, size, timeout)

    def close(self) -> None:
        """Leaves the launcher's store so that ranks which it starts again do not find this meeting."""
        if self.rank == 0 and isinstance(self._store, PrefixStore):
            self._store.underlying_store.delete_key(_ROUND)

    def tell(self, what: str, value: Any) -> None:
        """For all ranks to hear: anything that JSON can hold."""
        self._store.set(f"{what} {self.rank}", json.dumps(value))

    def hear(self, what: str, ranks: Iterable[int] | None = None, patience: float = 0) -> dict[int, Any]:
        """What ranks have told, by rank, without those that have not within the timeout.

        Args:
            what: As they told it.
            ranks: By default all.
            patience: Seconds that they may take beside the timeout.
        """
        keys = {rank: f"{what} {rank}" for rank in (range(self.size) if ranks is None else ranks)}
        with suppress(dist.DistStoreError):
            self._store.wait([*keys.values()], timedelta(seconds=self.timeout + patience))
        return {
            rank: json.loads(self._store.get(key)) for rank, key in keys.items() if self._store.check([key])
        }

    def group_store(self) -> Store:
        """A connection of its own for a process group: who waits at one keeps all that share it waiting."""
        name = uuid4().hex
        if self.rank == 0:
            self.tell("group", name)
        return PrefixStore(self.hear("group", [0]).get(0, name), self._store.clone())  # type: ignore[attr-defined]


def within(seconds: float, function: Callable[[], T]) -> T:
    """What `function` returns or raises; it is left to itself where that takes longer.

    Raises:
        TimeoutError: It has not ended. Its thread goes on: the process has to end by `os._exit`.
    """
    outcome: SimpleQueue[Callable[[], T]] = SimpleQueue()

    def run() -> None:
        try:
            value = function()
        except BaseException as error:
            raised = error

            def again() -> T:
                raise raised

            outcome.put(again)
        else:
            outcome.put(lambda: value)

    Thread(target=run, daemon=True).start()
    try:
        result = outcome.get(timeout=seconds)
    except Empty:
        raise TimeoutError(f"no end after {seconds:g} s") from None
    return result()
