"""What one rank alone has come upon, a mistake or a fault, made known to all of them.

The others are in a collective, or soon will be. All that they could say is that a connection was closed.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from threading import Thread
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.distributed_c10d import Store

from distopt import comm
from distopt.errors import LOST, UNSET, ConfigError, PeerError, in_one_line
from distopt.faults import Stopped, defer_signals, end_on_signals
from distopt.progress import Progress

_KEY = "distopt/failure"
_ROLL_CALL = 2.0
"""Seconds in which a rank that is alive, and loses its connections, has said so."""
_NOBODYS_TAG = 0x6D697374


class Failure(NamedTuple):
    """The first failure of a run, as it stands in the process group's store."""

    rank: int
    """Which failed."""
    reason: str
    """In one line."""
    at: str = ""
    """What the rank was doing: `step 121, evaluation`."""
    mistakes: list[dict[str, Any]] | None = None
    """The ConfigErrors, where it was one or several."""
    silent: tuple[int, ...] = ()
    """The ranks that say nothing any more."""
    told_by: int | None = None
    """The rank that tells of it, where it does not itself."""
    positions: tuple[str, ...] = ()
    """Of a hang: where each rank is."""

    def __str__(self) -> str:
        others = ", ".join(str(rank) for rank in self.silent if rank != self.rank)
        doubt = f" (or it was one of {others})" if others else ""
        return f"rank {self.rank} failed first: {self.reason}{doubt}"


@contextmanager
def shared_failures(progress: Progress | None = None) -> Iterator[None]:
    """Within it, what the first rank to fail raises ends all of them, and they know it.

    That rank posts it in the process group's store, and breaks off its connections: so the collectives of the
    others fail at once, and they find it there. The process group is of no use afterwards. A rank that waits
    for its GPU goes on waiting, since NCCL's connections stay: the watchdog ends it.

    Args:
        progress: Of this rank; says in which step it was.

    Raises:
        ConfigError: This rank's own; or another's, with `rank N: ` before the problem.
        PeerError: Another rank has failed with anything else, and says so itself.
    """
    try:
        yield
    # A launcher that saw another rank leave may have stopped this one.
    except (Exception, SystemExit, Stopped) as error:
        if not dist.is_initialized() or dist.get_world_size() == 1:
            raise
        defer_signals()
        own = None if isinstance(error, Stopped) else _failure(error, progress)
        first = _first(own, error.__cause__ if isinstance(error, Stopped) else error)
        if first is None:
            raise
        break_off()
        if first.rank == dist.get_rank() or (own and own.mistakes and first.mistakes == own.mistakes):
            raise
        if first.mistakes:
            raise _from_plain(first.mistakes, f"rank {first.rank}: ") from error
        raise PeerError(_seen_from_here(first, progress)) from None


def tell_before_the_group(error: BaseException) -> None:
    """Joins the process group, on another rank than 0, to share there what was found before it.

    Rank 0 would wait for this one to join, deaf even to signals. For a process that is about to end.
    """
    world = comm.World.from_env()
    if not world.is_main and not dist.is_initialized():
        end_on_signals()
        joining = Thread(target=_join_and_raise, args=(world, error), daemon=True)  # it may wait in vain
        joining.start()
        joining.join(timeout=10)


def post(store: Store, failure: Failure) -> Failure:
    """Posts a failure, unless there is one; returns the one that is there then."""
    return _from_json(store.compare_set(_KEY, "", json.dumps(failure)))


def posted(store: Store) -> Failure | None:
    """The failure that was posted, by any rank."""
    return _from_json(store.get(_KEY)) if store.check([_KEY]) else None


def break_off() -> None:
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


def _join_and_raise(world: comm.World, error: BaseException) -> None:
    with suppress(BaseException), comm.process_group(world), shared_failures():
        raise error


def _failure(error: BaseException, progress: Progress | None) -> Failure:
    mistakes = _to_plain(error) if isinstance(error, ConfigError) else None
    at = str(progress.at) if progress else ""
    return Failure(dist.get_rank(), in_one_line(error), at, mistakes)


def _first(own: Failure | None, error: BaseException | None) -> Failure | None:
    """What the first rank to fail has posted: this one perhaps, with its `own`."""
    with suppress(Exception):  # the store has ended with its host
        store = distributed_c10d._get_default_store()
        store.set(_present(dist.get_rank()), "")
        if first := posted(store):
            return first
        if _is_of_a_connection(error) and (gone := _gone(store)):
            own = Failure(gone[0], LOST, silent=gone, told_by=dist.get_rank())
        return post(store, own) if own else None
    return own


def _is_of_a_connection(error: BaseException | None) -> bool:
    """Whether an exception may be no more than what is seen of the end of another rank."""
    text = str(error).lower() if isinstance(error, RuntimeError) else ""
    return ("gloo" in text or "nccl" in text) and "timed out" not in text and "timeout" not in text


def _gone(store: Store) -> tuple[int, ...]:
    """The ranks that ended without a word: moved to fail by what is broken off here, the others report."""
    break_off()
    end = time.monotonic() + _ROLL_CALL
    gone = set(range(dist.get_world_size()))
    while gone and time.monotonic() < end:
        gone = {rank for rank in gone if not store.check([_present(rank)])}
        time.sleep(0.02)
    return tuple(sorted(gone))


def _present(rank: int) -> str:
    return f"distopt/present/{rank}"


def _seen_from_here(first: Failure, progress: Progress | None) -> str:
    """The failure in a line, with what this rank was doing where that was something else."""
    here = str(progress.at) if progress else ""
    if first.at == here or first.positions:
        return str(first)
    points = [f"at {first.at}"] if first.at else []
    return f"{first} ({'; '.join([*points, f'rank {dist.get_rank()} was at {here}'])})"


def _from_json(text: bytes) -> Failure:
    return Failure(*json.loads(text))


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
