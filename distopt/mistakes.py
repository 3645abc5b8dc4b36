"""A mistake that one rank alone has come upon, raised on all of them.

The others are in a collective, or soon will be. All that they could say is that a connection was closed.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from threading import Thread
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from distopt import comm
from distopt.errors import UNSET, ConfigError
from distopt.faults import Stopped, end_on_signals

_STORE_KEY = "distopt/mistake"
_NOBODYS_TAG = 0x6D697374


@contextmanager
def shared_mistakes() -> Iterator[None]:
    """Within it, the first ConfigError of any rank is raised on every rank that fails, whatever stopped it.

    The rank that made it posts it in the process group's store, and breaks off its connections: so the
    collectives of the others fail at once, and they find it there. The process group is of no use afterwards.
    A rank that waits for its GPU goes on waiting: NCCL's connections stay.

    Raises:
        ConfigError: This rank's own; or another's, with `rank N: ` before the problem.
    """
    try:
        yield
    except (Exception, Stopped) as error:  # a launcher that saw a rank leave may have stopped this one
        if not dist.is_initialized() or dist.get_world_size() == 1:
            raise
        own = _to_plain(error) if isinstance(error, ConfigError) else None
        rank, first = _first_mistake(own)
        if first is None:
            raise
        _break_off()
        if first == own or rank == dist.get_rank():
            raise
        raise _from_plain(first, f"rank {rank}: ") from error


def tell_before_the_group(error: ConfigError) -> None:
    """Joins the process group, on another rank than 0, to share there what was found before it.

    Rank 0 would wait for this one to join, deaf even to signals. For a process that is about to end.
    """
    world = comm.World.from_env()
    if not world.is_main and not dist.is_initialized():
        end_on_signals()
        joining = Thread(target=_join_and_raise, args=(world, error), daemon=True)  # it may wait in vain
        joining.start()
        joining.join(timeout=10)


def _join_and_raise(world: comm.World, error: ConfigError) -> None:
    with suppress(Exception), comm.process_group(world), shared_mistakes():
        raise error


def _first_mistake(own: list[dict[str, Any]] | None) -> tuple[int, list[dict[str, Any]] | None]:
    """The rank that was the first to post a mistake, this one perhaps with its `own`, and what it posted."""
    rank = dist.get_rank()
    with suppress(Exception):  # the store has ended with its host
        store = distributed_c10d._get_default_store()
        if own:
            return tuple(json.loads(store.compare_set(_STORE_KEY, "", json.dumps([rank, own]))))
        if store.check([_STORE_KEY]):
            return tuple(json.loads(store.get(_STORE_KEY)))
    return rank, own


def _to_plain(error: ConfigError) -> list[dict[str, Any]]:
    """The arguments of a ConfigError, and of those told with it, as they are after JSON."""
    names = ("key", "problem", "given", "allowed", "suggestion", "where")
    fields = ({name: getattr(one, name) for name in names} for one in (error, *error.others))
    plain = [{name: value for name, value in one.items() if value is not UNSET} for one in fields]
    return json.loads(json.dumps(plain, default=str))  # type: ignore[no-any-return]


def _from_plain(errors: list[dict[str, Any]], before: str) -> ConfigError:
    return ConfigError.many(
        ConfigError(**{**fields, "problem": before + fields["problem"]}) for fields in errors
    )


def _break_off() -> None:
    """Closes this rank's connections of all groups over gloo, and the copies that its children have.

    Neither `abort` nor `shutdown` does that, and `destroy_process_group` only where nothing refers to the
    group any more. A receive that times out closes all connections of its group.
    """
    _end_workers()
    for group in list(distributed_c10d._world.pg_map):
        with suppress(RuntimeError):  # no backend for the CPU
            gloo = group._get_backend(torch.device("cpu"))
            for peer in range(gloo.size()):
                if gloo.name() == "gloo" and peer != gloo.rank():
                    _receive_in_vain(gloo, peer)


def _end_workers() -> None:
    """Ends the loaders' workers: while one that was forked lives, what its parent closes stays open."""
    workers = [child for child in multiprocessing.active_children() if child.daemon]
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.join(timeout=1)


def _receive_in_vain(gloo: Any, peer: int) -> None:
    with suppress(RuntimeError):
        gloo.recv([torch.empty(1)], peer, _NOBODYS_TAG).wait(timedelta(milliseconds=1))
