"""A step of the average of the weights: ours beside torch's.

    torchrun --standalone --nproc_per_node=2 -m benchmarks.ema

Beside it stands `torch.optim.swa_utils.AveragedModel`; under FSDP2, whose modules that cannot copy, the same
formula on DTensors. Both take turns at every step, in the same processes, and end with the same averages.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.optimizer import MODELS, WARM_UP, made
from distopt import comm
from distopt.config import EmaConfig
from distopt.ema import Ema

DECAY = 0.999

HEAD = """\
| model | tensors | beside | its ms | distopt ms | ratio |
| --- | --- | --- | --- | --- | --- |"""


class Row(NamedTuple):
    """One line of the table, with seconds of each turn."""

    model: str
    tensors: int
    beside: str
    theirs: list[float]
    ours: list[float]


def whole(name: str, turns: int) -> Row:
    """A model that every rank has all of."""
    model = MODELS[name]().to(comm.World.from_env().device)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    theirs.update_parameters(model)  # the first only copies
    ema = Ema(model, EmaConfig(decay=DECAY))
    row = Row(name, len(ema.averages), "AveragedModel", [], [])
    _take_turns(row, model, lambda: theirs.update_parameters(model), ema.update, turns)
    _check(dict(theirs.module.named_parameters()), ema)
    return row


@torch.no_grad()
def of_shards(name: str, turns: int) -> Row:
    """A model under FSDP2."""
    model = made(MODELS[name], sharded=True)
    live = dict(model.named_parameters())
    averages = {fqn: parameter.detach().clone() for fqn, parameter in live.items()}
    ema = Ema(model, EmaConfig(decay=DECAY))
    row = Row(name, len(ema.averages), "DTensors", [], [])

    def on_dtensors() -> None:
        torch._foreach_lerp_([*averages.values()], [*live.values()], 1 - DECAY)

    _take_turns(row, model, on_dtensors, ema.update, turns)
    _check(averages, ema)
    return row


def line(row: Row) -> str:
    """A line of the table: medians of single turns in milliseconds; the ratio is of theirs to ours."""
    theirs, ours = median(row.theirs), median(row.ours)
    cells = (row.model, row.tensors, row.beside, f"{1e3 * theirs:.3f}", f"{1e3 * ours:.3f}")
    return f"| {' | '.join(map(str, cells))} | {theirs / ours:.2f} |"


def _take_turns(
    row: Row, model: nn.Module, theirs: Callable[[], object], ours: Callable[[], object], turns: int
) -> None:
    for turn in range(WARM_UP + turns):
        with torch.no_grad():  # what an optimizer would do
            for parameter in model.parameters():
                _local(parameter).add_(1e-3)
        for function, times in ((theirs, row.theirs), (ours, row.ours)):
            dist.barrier()  # both ranks are busy, as in training
            start = perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= WARM_UP:
                times.append(perf_counter() - start)


def _check(theirs: dict[str, Tensor], ema: Ema) -> None:
    for fqn, average in ema.averages.items():
        assert torch.equal(_local(theirs[fqn].detach()), _local(average))


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=200, help="timed steps of each side")
    turns = parser.parse_args().turns
    world = comm.World.from_env()
    torch.set_num_threads(1)
    if world.is_main:
        print(HEAD, flush=True)
    with comm.process_group(world):
        for name in MODELS:
            for measure in (whole, of_shards):
                row = measure(name, turns)
                if world.is_main:
                    print(line(row), flush=True)


if __name__ == "__main__":
    main()
