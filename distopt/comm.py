"""The process group: who this process is, one packed collective, agreement between ranks."""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from distopt import rounds
from distopt.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among all: torchrun's variables, or one process alone."""

    rank: int
    size: int
    local_rank: int

    @classmethod
    def from_env(cls) -> World:
        get = os.environ.get
        return cls(int(get("RANK", "0")), int(get("WORLD_SIZE", "1")), int(get("LOCAL_RANK", "0")))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def launched(self) -> bool:
        """Whether a launcher such as torchrun started this process."""
        return "RANK" in os.environ

    @property
    def device(self) -> torch.device:
        if torch.cuda.is_available():
            return torch.device("cuda", self.local_rank)
        return torch.device("cpu")


@contextmanager
def process_group(
    world: World,
    joining: Callable[[], AbstractContextManager[None]] = nullcontext,
    timeout: timedelta | None = None,
) -> Iterator[None]:
    """A process group of the whole world for the `with` block; one that exists already is used as it is.

    On CUDA there is a gloo backend beside NCCL, for the tensors of checkpoints that live on the CPU.
    At the end of the block no C++ of torch's may hold the group any more: see `parallel.release`.

    Args:
        world: This process among all.
        joining: The context in which to wait for all ranks, one of which may have failed.
        timeout: After which a collective has failed; None for torch's own.
    """
    if dist.is_initialized():
        yield
        return
    device = world.device
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    with joining():
        # Without a launcher there is no address to meet at, and nobody to meet.
        store = rounds.agent_store() if world.launched else dist.HashStore()  # type: ignore[attr-defined]
        if store is not None:
            store = rounds.new_round(store, world.rank, world.size)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            timeout=timeout,
            store=store,
            rank=world.rank,
            world_size=world.size,
            device_id=device if on_gpu else None,
        )
    yield
    # Not after an exception: with a collective under way, NCCL would wait for ranks that have failed.
    with deadline(300):
        dist.barrier()  # gloo's ranks are to leave together: one that is gone may be waited for
        dist.destroy_process_group()


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Ends the process, with every thread's stack on stderr, where the block takes longer than that."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def meet() -> None:
    """Waits for all ranks, on the CPU."""
    dist.all_reduce(torch.zeros(1))


def sum_over_ranks(values: Sequence[torch.Tensor | float], device: torch.device) -> list[float]:
    """The sum of each value over all ranks, in one collective and one device synchronisation."""
    packed = _packed(values, device)
    if dist.is_initialized():
        dist.all_reduce(packed)
    return packed.tolist()


def gather_numbers(values: Sequence[torch.Tensor | float], device: torch.device) -> NDArray[np.float64]:
    """Every rank's `values`, in one collective and one device synchronisation.

    Returns:
        Of shape (ranks, values).
    """
    packed = _packed(values, device)
    everyones = packed.new_empty(dist.get_world_size(), len(values))
    dist.all_gather(list(everyones.unbind()), packed)
    found: NDArray[np.float64] = everyones.cpu().numpy()
    return found


def _packed(values: Sequence[torch.Tensor | float], device: torch.device) -> torch.Tensor:
    numbers = [0.0 if isinstance(value, torch.Tensor) else value for value in values]
    packed = torch.tensor(numbers, dtype=torch.float64, device=device)
    for i, value in enumerate(values):
        if isinstance(value, torch.Tensor):
            packed[i] = value.detach()
    return packed


def gather(value: T) -> list[T]:
    """Every rank's `value`, by rank, on every rank; it travels by pickle."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def agree(facts: dict[str, str], keys: Mapping[str, str] = MappingProxyType({})) -> None:
    """Proves that every rank holds the same `facts`, before the first collective that depends on them.

    Args:
        facts: What must be the same (`"plan"`, `"resume"`) → its value on this rank.
        keys: Those of them that are the user's → the config key.

    Raises:
        ConfigError: As below, for a fact of the user's.
        RuntimeError: On every rank, naming the fact and the ranks that hold something else than rank 0.
    """
    everyones = gather(facts)
    for what, value in everyones[0].items():
        odd = [rank for rank, theirs in enumerate(everyones) if theirs[what] != value]
        if odd:
            problem = f"the ranks do not agree on the {what}"
            values = ", ".join(f"rank {rank}: {everyones[rank][what]}" for rank in [0, *odd[:3]])
            if what in keys:
                raise ConfigError(keys[what], problem, given=values, allowed="the same on every rank")
            raise RuntimeError(f"{problem} ({values})")


def differing(numbers: Sequence[int]) -> list[list[int]] | None:
    """Every rank's `numbers`, by rank, where they are not the same on all; None where they are.

    One small collective, on the CPU: the device goes on meanwhile. A process without a group is alone.
    """
    if not dist.is_initialized():
        return None
    mine = torch.tensor(numbers, dtype=torch.int64)
    bounds = torch.cat([mine, -mine])
    dist.all_reduce(bounds, dist.ReduceOp.MAX)
    largest, smallest = bounds.chunk(2)
    return None if torch.equal(largest, -smallest) else gather(list(numbers))
