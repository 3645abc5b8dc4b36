"""The optimizer's step and clipping against torch's own: on shards under FSDP2, and on whole tensors.

    torchrun --standalone --nproc_per_node=2 benchmarks/optimizer.py

Both sides have the same gradients and take turns at every step, in the same processes; after the last step
parameters and state are compared bit by bit.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from distopt import comm
from distopt.fused import FusedStep
from distopt.models import ByteGPT
from distopt.norms import GroupNorms, clip_by_norm, total_norm
from distopt.optim.local_shards import step_local_shards

WARM_UP = 10
MAX_NORM = 1.0
LR, MOMENTUM = 1e-3, 0.9

HEAD = """\
| model | tensors | what | torch ms | distopt ms | ratio |
| --- | --- | --- | --- | --- | --- |"""


def small_tensors() -> nn.Module:
    """Linear layers of 120 tensors."""
    return nn.Sequential(*(nn.Linear(16, 16) for _ in range(60)))


def byte_gpt() -> nn.Module:
    """10.8 M parameters."""
    return ByteGPT(width=384, depth=6, context=256)


MODELS: dict[str, Callable[[], nn.Module]] = {"small": small_tensors, "ByteGPT": byte_gpt}
OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "AdamW, fused": (torch.optim.AdamW, {"lr": LR, "fused": True}),
    "AdamW, foreach": (torch.optim.AdamW, {"lr": LR, "foreach": True}),
    "SGD, foreach": (torch.optim.SGD, {"lr": LR, "momentum": MOMENTUM, "foreach": True}),
}
"""SGD's fused kernel fails on DTensors."""


class Row(NamedTuple):
    """One line of the table, with seconds of each turn."""

    model: str
    tensors: int
    what: str
    by_torch: list[float]
    by_us: list[float]


@torch.no_grad()
def made(make: Callable[[], nn.Module], *, sharded: bool) -> nn.Module:
    """The model, under FSDP2 or whole, with a gradient that is the same whenever it is made."""
    torch.manual_seed(0)
    model = make().to(comm.World.from_env().device)
    if sharded:
        for block in getattr(model, "blocks", ()):
            fully_shard(block)
        fully_shard(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
        _local(parameter.grad).normal_()
    return model


def stepping(name: str, optimizer: str, turns: int, *, sharded: bool = True) -> Row:
    """Steps of two models alike: of shards as shards, of whole ones by lists that are made once."""
    cls, options = OPTIMIZERS[optimizer]
    models = [made(MODELS[name], sharded=sharded) for _ in range(2)]
    optimizers = [cls(model.parameters(), **options) for model in models]
    step_local_shards(optimizers[1])
    ours = optimizers[1].step if sharded else FusedStep(optimizers[1])
    what = optimizer if sharded else f"{optimizer}, whole tensors"
    row = _take_turns(name, what, models[0], optimizers[0].step, ours, turns)
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        assert _equal(a, b)
        for key, value in optimizers[0].state[a].items():
            assert _equal(value, optimizers[1].state[b][key])
    return row


def clipping(name: str, turns: int) -> Row:
    """Clips two gradients alike; they shrink little after the first time."""
    models = [made(MODELS[name], sharded=True) for _ in range(2)]
    parameters = list(models[0].parameters())
    groups = [{"params": list(models[1].parameters())}]
    norms = GroupNorms(groups)

    def theirs() -> None:
        nn.utils.clip_grad_norm_(parameters, MAX_NORM)

    def ours() -> None:
        clip_by_norm(groups, total_norm(norms.of_gradients()), MAX_NORM)

    row = _take_turns(name, "clipping", models[0], theirs, ours, turns)
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(_local(a.grad), _local(b.grad), rtol=1e-4, atol=0)
    return row


def line(row: Row) -> str:
    """A line of the table: medians of single turns in milliseconds; the ratio is of torch's to ours."""
    theirs, ours = median(row.by_torch), median(row.by_us)
    return (
        f"| {row.model} | {row.tensors} | {row.what} | {1e3 * theirs:.2f} | {1e3 * ours:.2f}"
        f" | {theirs / ours:.2f} |"
    )


def _take_turns(
    name: str,
    what: str,
    model: nn.Module,
    theirs: Callable[[], object],
    ours: Callable[[], object],
    turns: int,
) -> Row:
    row = Row(name, len(list(model.parameters())), what, [], [])
    for turn in range(WARM_UP + turns):
        for function, times in ((theirs, row.by_torch), (ours, row.by_us)):
            dist.barrier()  # no rank waits for another inside
            start = perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= WARM_UP:
                times.append(perf_counter() - start)
    return row


def _local(value: Any) -> Any:
    return value.to_local() if isinstance(value, DTensor) else value


def _equal(these: Tensor, those: Tensor) -> bool:
    return type(these) is type(those) and torch.equal(_local(these), _local(those))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=200, help="timed steps of each side")
    turns = parser.parse_args().turns
    world = comm.World.from_env()

    def show(text: str) -> None:
        if world.is_main:
            print(text, flush=True)

    torch.set_num_threads(1)
    show(HEAD)
    with comm.process_group(world):
        for name in MODELS:
            for optimizer in OPTIMIZERS:
                show(line(stepping(name, optimizer, turns)))
            show(line(clipping(name, turns)))
            show(line(stepping(name, "AdamW, fused", turns, sharded=False)))


if __name__ == "__main__":
    main()
