"""What takes all ranks to find out: how fast they reduce, and whether their clocks agree."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Final

import torch
import torch.distributed as dist
from torch.distributed import Store  # type: ignore[attr-defined]

from distopt.launch.doctor.examination import Measured

GLOO_SIZES: Final = (2**12, 2**20, 2**24)
NCCL_SIZES: Final = (2**12, 2**20, 2**28)
"""Bytes of an all-reduce: latency, something between, bandwidth."""

_LINK: Final = 2**23
"""Bytes sent to each node and back."""


def measure(
    store: Store,
    rank: int,
    size: int,
    leaders: Sequence[int],
    timeout: float,
    device: torch.device,
    begin: Callable[[str], None],
) -> Measured:
    """Forms a process group, measures, and leaves it.

    Args:
        store: Of all ranks, and used by nobody else.
        rank: Of this process.
        size: Of the world.
        leaders: The first rank of each node.
        timeout: Seconds for each collective.
        device: The GPU, where all ranks have one of their own; else the CPU.
        begin: Called with what is done next, to be told where it does not end.
    """
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
        os.environ["TORCH_NCCL_BLOCKING_WAIT"] = "1"  # raise after the timeout, in place of SIGABRT
    begin("forming a group")
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        store=store,
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=timeout),
    )
    begin("all-reduce, gloo")
    all_reduce = {"gloo": [(count, _time_all_reduce(count, torch.device("cpu"))) for count in GLOO_SIZES]}
    if on_gpu:
        begin("all-reduce, nccl")
        all_reduce["nccl"] = [(count, _time_all_reduce(count, device)) for count in NCCL_SIZES]
    begin("work")
    work = _time_work(device)
    begin("messages between rank 0 and each node")
    met = [_meet_node(rank, leader) for leader in leaders if leader != 0 and rank in (0, leader)]
    begin("leaving the group")
    dist.all_reduce(torch.zeros(1))  # on the CPU: gloo's ranks are to leave together
    dist.destroy_process_group()
    met = met if rank == 0 else []
    return Measured(work, all_reduce, [clock for clock, _ in met], [link for _, link in met])


def best(function: Callable[[], Any], device: torch.device, times: int) -> float:
    """Seconds of the fastest of several calls, after one that counts not."""
    seconds = []
    for _ in range(times + 1):
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def _time_all_reduce(count: int, device: torch.device) -> float:
    buffer = torch.zeros(count // 4, device=device)
    return best(lambda: dist.all_reduce(buffer), device, times=5)


def _time_work(device: torch.device) -> float:
    """A product of matrices: what a slow core or a throttled GPU takes longer for."""
    side, kind = (6144, torch.bfloat16) if device.type == "cuda" else (192, torch.float32)
    matrix = torch.ones(side, side, dtype=kind, device=device)
    return best(lambda: matrix @ matrix, device, times=20)


def _meet_node(
    rank: int, leader: int, rounds: int = 10
) -> tuple[tuple[int, float, float], tuple[int, float, float]]:
    """Rank 0 and the first of another node send one another the time, then something large.

    The other's clock was read between sending and receiving: the shortest round bounds the error.

    Returns:
        An entry of `clocks` and one of `links`; of no meaning but at rank 0.
    """
    stamp = torch.zeros(1, dtype=torch.float64)
    seen = []
    for _ in range(rounds):
        if rank == 0:
            begun, clock = time.perf_counter(), time.time()
            dist.send(stamp, leader)
            dist.recv(stamp, leader)
            there_and_back = time.perf_counter() - begun
            seen.append((there_and_back, stamp.item() - (clock + there_and_back / 2)))
        else:
            dist.recv(stamp, 0)
            stamp.fill_(time.time())
            dist.send(stamp, 0)
    large = torch.zeros(_LINK // 4)

    def exchange() -> None:
        for sends in (rank == 0, rank != 0):
            if sends:
                dist.send(large, 0 if rank else leader)
            else:
                dist.recv(large, 0 if rank else leader)

    seconds = best(exchange, torch.device("cpu"), times=2)
    shortest, offset = min(seen, default=(0.0, 0.0))
    return (leader, offset, shortest / 2), (leader, shortest, 2 * _LINK / seconds)
