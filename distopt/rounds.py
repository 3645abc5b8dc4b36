"""A store of its own for each round of a launcher's restarts: where ranks tell one another their addresses.

torchrun keeps one store through all restarts, and restarted ranks find in it the addresses of those that
have died (pytorch issues 135712 and 167288). Its count of restarts does not tell rounds apart: each node has
its own.
"""

from __future__ import annotations

import os
import time
from uuid import uuid4

from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]


def agent_store() -> Store | None:
    """The store of torchrun; None where the ranks make one of their own, which is new in each round."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    return TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, wait_for_workers=False
    )


def new_round(store: Store, rank: int, size: int) -> Store:
    """The part of `store` that the ranks which call this together share with no others, before or after.

    Rank 0 names the round. It tells the name to whoever has last said to be some rank, until each rank has
    confirmed it: one that has died cannot.

    Raises:
        RuntimeError: Not all ranks have come within the store's timeout.
    """
    own = uuid4().hex
    if rank > 0:
        store.set(f"rank {rank}", own)
        name = store.get(f"round of {own}").decode()
        store.set(f"{name}, rank {rank}", "")
        return PrefixStore(name, store)
    deadline = time.monotonic() + store.timeout.total_seconds()  # type: ignore[attr-defined]
    missing, told = set(range(1, size)), set[bytes]()
    while missing:
        for other in sorted(missing):
            if store.check([f"{own}, rank {other}"]):
                missing.remove(other)
            elif store.check([f"rank {other}"]) and (process := store.get(f"rank {other}")) not in told:
                store.set(f"round of {process.decode()}", own)
                told.add(process)
        if time.monotonic() > deadline:
            raise RuntimeError(f"these ranks have not come: {sorted(missing)}")
        time.sleep(0.005)
    return PrefixStore(own, store)
