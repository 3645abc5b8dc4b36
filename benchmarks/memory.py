"""What a rank has in its host's memory when a model starts, and when it trains.

    python benchmarks/memory.py

Each line is measured in processes of its own, on gloo. Sizes are those of the rank that has most, in MB; what
a process has after it did the same with a small model (Python, torch, the process group) is taken off.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
import tempfile
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from distopt import build_optimizer, comm, parallel
from distopt.config import StrategyConfig
from distopt.models import ByteGPT

MODEL = {"width": 1024, "depth": 8, "heads": 8, "context": 64}
SMALL = {"width": 64, "depth": 4, "heads": 2, "context": 64}
CPU = torch.device("cpu")
MB = 1e6
STARTS = {
    "fsdp, meta_init": StrategyConfig(type="fsdp", meta_init=True),
    "hsdp, meta_init": StrategyConfig(type="hsdp", shard_size=2, meta_init=True),
    "fsdp": StrategyConfig(type="fsdp"),
}
TRAININGS = {
    "fsdp": StrategyConfig(type="fsdp", meta_init=True),
    "hsdp": StrategyConfig(type="hsdp", shard_size=2, meta_init=True),
    "ddp": StrategyConfig(type="ddp"),
}

START_HEAD = """\
| start | parameters, whole MB | a rank's part MB | largest parameter MB | peak MB | peak / part |
| --- | --- | --- | --- | --- | --- |"""
TRAINING_HEAD = """\
| training | 16 B per parameter of a rank's part MB | tensors MB | ratio | in memory MB | ratio | peak MB |
| --- | --- | --- | --- | --- | --- | --- |"""


class Start(NamedTuple):
    """Bytes of one rank."""

    whole: float
    part: float
    largest: float
    peak: float


class Training(NamedTuple):
    """Bytes of one rank: what 16 per parameter come to, and what there was in the third step."""

    arithmetic: float
    tensors: float
    resident: float
    peak: float


def start(model: dict[str, Any], strategy: StrategyConfig) -> Start:
    """Makes and wraps a model."""
    _started(SMALL, strategy)
    before = _peak()
    wrapped = _started(model, strategy)
    peak = _peak() - before
    sizes = [p.numel() * p.element_size() for p in wrapped.parameters()]
    return Start(sum(sizes), sum(sizes) / _shards(strategy), max(sizes), peak)


def training(model: dict[str, Any], strategy: StrategyConfig) -> Training:
    """Makes and wraps a model, and takes three steps of AdamW on one short sequence."""
    parallel.release(_trained(SMALL, strategy)[0])
    before = _resident()
    wrapped, optimizer = _trained(model, strategy)
    live = [tensor for p in wrapped.parameters() for tensor in (p, p.grad, *optimizer.state[p].values())]
    tensors = sum(_bytes(t) for t in live if isinstance(t, Tensor))
    arithmetic = 16 * sum(p.numel() for p in wrapped.parameters()) / _shards(strategy)
    found = Training(arithmetic, tensors, _resident() - before, _peak() - before)
    parallel.release(wrapped)
    return found


def _trained(model: dict[str, Any], strategy: StrategyConfig) -> tuple[nn.Module, Optimizer]:
    wrapped = _started(model, strategy)
    optimizer = build_optimizer(wrapped, {"type": "AdamW", "lr": 1e-3})
    tokens = torch.randint(256, (1, 17))
    for _ in range(3):
        optimizer.zero_grad()
        wrapped(tokens)["loss"].backward()
        optimizer.step()
    return wrapped, optimizer


def _started(model: dict[str, Any], strategy: StrategyConfig) -> nn.Module:
    torch.manual_seed(0)
    with torch.device("meta" if strategy.meta_init else "cpu"):
        made = ByteGPT(**model)
    return parallel.wrap(made, strategy, CPU)


def _shards(strategy: StrategyConfig) -> int:
    """Among how many ranks the parameters are divided."""
    return (strategy.shard_size or dist.get_world_size()) if strategy.shards else 1


def _bytes(tensor: Tensor) -> int:
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.numel() * local.element_size()


def _peak() -> int:
    # ru_maxrss of a process begins with that of the one that started it.
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def _resident() -> int:
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # it keeps what is freed, for the next step: see the peak
    with Path("/proc/self/statm").open() as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def on_ranks(ranks: int, function: Callable[..., tuple[float, ...]], *args: object) -> tuple[float, ...]:
    """Calls a function in `ranks` fresh processes; the largest of each number that they return."""
    context = get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, context.Pool(ranks, maxtasksperchild=1) as pool:
        calls = [
            pool.apply_async(_rank, (rank, ranks, f"{folder}/store", function, *args))
            for rank in range(ranks)
        ]
        return tuple(map(max, zip(*(call.get() for call in calls), strict=True)))


def _rank(rank: int, ranks: int, store: str, function: Callable[..., Any], *args: object) -> Any:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    comm.gather(os.getpid())  # all are there, and so is what gloo wants
    found = function(*args)
    dist.barrier()
    dist.destroy_process_group()
    return found


def start_line(name: str, model: dict[str, Any], ranks: int) -> str:
    found = Start(*on_ranks(ranks, start, model, STARTS[name]))
    cells = [f"{number / MB:,.0f}" for number in found]
    return f"| {' | '.join([name, *cells, f'{found.peak / found.part:.2f}'])} |"


def training_line(name: str, model: dict[str, Any], ranks: int) -> str:
    found = Training(*on_ranks(ranks, training, model, TRAININGS[name]))
    arithmetic, tensors, resident, peak = (f"{number / MB:,.0f}" for number in found)
    ratios = (f"{number / found.arithmetic:.3f}" for number in (found.tensors, found.resident))
    cells = [name, arithmetic, tensors, next(ratios), resident, next(ratios), peak]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--width", type=int, default=MODEL["width"])
    parser.add_argument("--depth", type=int, default=MODEL["depth"])
    args = parser.parse_args()
    model = {**MODEL, "width": args.width, "depth": args.depth}
    print(START_HEAD)
    for name in STARTS:
        print(start_line(name, model, args.ranks), flush=True)
    print(f"\n{TRAINING_HEAD}")
    for name in TRAININGS:
        print(training_line(name, model, args.ranks), flush=True)


if __name__ == "__main__":
    main()
