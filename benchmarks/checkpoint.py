"""What a checkpoint costs the training: written beside it, and written while it waits.

    torchrun --standalone --nproc_per_node=2 -m benchmarks.checkpoint

The state is that of a model under FSDP2 with AdamW: weights and two moments. Both ways take turns.
"""

from __future__ import annotations

import argparse
import ctypes
import resource
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from benchmarks.overhead import _work_dir
from distopt import build_optimizer, comm
from distopt.checkpoint import directory, state
from distopt.checkpoint.writer import Writer

CFG = {"type": "AdamW", "lr": 1e-3, "weight_decay": 0.1}
HEAD = "| what | seconds |\n| --- | --- |"


class Result(NamedTuple):
    seconds: dict[str, float]
    """Medians, by what was measured."""
    part: float
    """MB of a rank's part of the state."""
    extra: float
    """See `memory`."""


def make(megabytes: int, device: torch.device) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model whose weights and moments together have that many MB over all ranks, after a step."""
    width = 1024
    model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(megabytes // 12)))
    for layer in model:
        fully_shard(layer)
    fully_shard(model)
    optimizer = build_optimizer(model, CFG)
    model(torch.randn(2, width, device=device)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def step_seconds(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> float:
    began = perf_counter()
    model(x).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return perf_counter() - began


def resident() -> float:
    """MB that this process has in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def read_all(directory: Path) -> None:
    """Nothing but reading the files that this rank wrote."""
    for path in directory.glob(f"__{dist.get_rank()}_*"):
        path.read_bytes()


def memory(model: nn.Module, optimizer: torch.optim.Optimizer, writer: Writer, folder: Path) -> float:
    """MB that a rank has in memory more than before, at most, while a checkpoint is written."""
    ctypes.CDLL(None).malloc_trim(0)  # what was freed is to be in nobody's memory
    before = most = resident()
    progress = directory.Progress(0, dist.get_world_size(), [{}])
    writer.begin(directory.step_directory(folder, 0), state.capture(model, optimizer, progress, {}))
    while not writer.is_done:
        most = max(most, resident())
    writer.finish()
    return most - before


def measure(megabytes: int, repetitions: int, device: torch.device) -> Result:
    model, optimizer = make(megabytes, device)
    x = torch.randn(2, 1024, device=device)
    writers = {kind: Writer(asynchronous=kind == "asynchronous", device=device) for kind in KINDS}
    times: dict[str, list[float]] = {}

    def note(what: str, seconds: float) -> None:
        times.setdefault(what, []).append(seconds)

    with _work_dir() as folder:
        extra = memory(model, optimizer, writers["asynchronous"], folder)
        for repetition in range(repetitions + 1):  # the first allocates what the others use again
            for kind, writer in writers.items():
                note("a step", step_seconds(model, optimizer, x))
                path = directory.step_directory(folder, repetition)
                progress = directory.Progress(repetition, dist.get_world_size(), [{}])
                dist.barrier()
                began = perf_counter()
                writer.begin(path, state.capture(model, optimizer, progress, {}))
                note(f"{kind}: the training waits", perf_counter() - began)
                # All or none: a step has collectives.
                while sum(comm.gather(not writer.is_done)):
                    note("a step meanwhile", step_seconds(model, optimizer, x))
                writer.finish()
                note(f"{kind}: until it is complete", perf_counter() - began)
                if dist.get_rank() == 0 and repetition < repetitions:
                    directory.remove(path)
                dist.barrier()
        dist.barrier()
        began = perf_counter()
        assert directory.damage(path, share=(dist.get_rank(), dist.get_world_size())) is None
        note("verify", perf_counter() - began)
        read_all(path)  # from the disk
        began = perf_counter()
        read_all(path)
        note("read its bytes", perf_counter() - began)
        dist.barrier()
        began = perf_counter()
        state.load(path, model, optimizer)
        note("load", perf_counter() - began)
    seconds = {what: median(values[1:] or values) for what, values in times.items()}
    return Result(seconds, megabytes / dist.get_world_size(), extra)


KINDS = ("synchronous", "asynchronous")
RATIOS = (
    ("asynchronous: the training waits", "synchronous: the training waits"),
    ("a step meanwhile", "a step"),
    ("load", "read its bytes"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=528, help="of the state")
    parser.add_argument("--repetitions", type=int, default=4)
    args = parser.parse_args()
    world = comm.World.from_env()
    with comm.process_group(world):
        found = measure(args.megabytes, args.repetitions, world.device)
    if world.is_main:
        print(HEAD)
        for what, seconds in found.seconds.items():
            print(f"| {what} | {seconds:.3f} |")
        for one, other in RATIOS:
            print(f"| {one} / {other} | {found.seconds[one] / found.seconds[other]:.2f} |")
        print(f"| a rank's part of the state, MB | {found.part:.0f} |")
        print(f"| a rank's memory while it saves, MB more | {found.extra:.0f} |")


if __name__ == "__main__":
    main()
