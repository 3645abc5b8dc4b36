"""The optimizer's step and clipping under FSDP2: on local shards, against torch's own on DTensors.

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
from distopt.models import ByteGPT
from distopt.norms import GroupNorms, clip_by_norm, total_norm
from distopt.optim.local_shards import step_local_shards

WARM_UP = 10
MAX_NORM = 1.0
LR, MOMENTUM = 1e-3, 0.9

HEAD = """\
| model | tensors | what | DTensors ms | local shards ms | ratio |
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
    on_dtensors: list[float]
    on_shards: list[float]


@torch.no_grad()
def sharded(make: Callable[[], nn.Module]) -> nn.Module:
    """The model under FSDP2, with a gradient that is the same whenever it is made."""
    torch.manual_seed(0)
    model = make().to(comm.World.from_env().device)
    for block in getattr(model, "blocks", ()):
        fully_shard(block)
    fully_shard(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
        _local(parameter.grad).normal_()
    return model


def stepping(name: str, optimizer: str, turns: int) -> Row:
    """Steps of two models alike, one of which is stepped by its shards."""
    cls, options = OPTIMIZERS[optimizer]
    models = [sharded(MODELS[name]) for _ in range(2)]
    optimizers = [cls(model.parameters(), **options) for model in models]
    step_local_shards(optimizers[1])
    row = _take_turns(name, optimizer, models[0], optimizers[0].step, optimizers[1].step, turns)
    for theirs, ours in zip(*(model.parameters() for model in models), strict=True):
        assert _equal(theirs, ours)
        for key, value in optimizers[0].state[theirs].items():
            assert _equal(value, optimizers[1].state[ours][key])
    return row


def clipping(name: str, turns: int) -> Row:
    """Clips two gradients alike; they shrink little after the first time."""
    models = [sharded(MODELS[name]) for _ in range(2)]
    parameters = list(models[0].parameters())
    groups = [{"params": list(models[1].parameters())}]

    def on_dtensors() -> None:
        nn.utils.clip_grad_norm_(parameters, MAX_NORM)

    def on_shards() -> None:
        clip_by_norm(groups, total_norm(GroupNorms(groups).of_gradients()), MAX_NORM)

    row = _take_turns(name, "clipping", models[0], on_dtensors, on_shards, turns)
    for theirs, ours in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(_local(theirs.grad), _local(ours.grad), rtol=1e-4, atol=0)
    return row


def line(row: Row) -> str:
    """A line of the table: medians of single turns in milliseconds; the ratio is of DTensors to shards."""
    on_dtensors, on_shards = median(row.on_dtensors), median(row.on_shards)
    return (
        f"| {row.model} | {row.tensors} | {row.what} | {1e3 * on_dtensors:.2f} | {1e3 * on_shards:.2f}"
        f" | {on_dtensors / on_shards:.2f} |"
    )


def _take_turns(
    name: str,
    what: str,
    model: nn.Module,
    on_dtensors: Callable[[], object],
    on_shards: Callable[[], object],
    turns: int,
) -> Row:
    row = Row(name, len(list(model.parameters())), what, [], [])
    for turn in range(WARM_UP + turns):
        for function, times in ((on_dtensors, row.on_dtensors), (on_shards, row.on_shards)):
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


if __name__ == "__main__":
    main()
