"""The runner against a hand-written loop of the same training.

    torchrun --standalone --nproc_per_node=2 benchmarks/overhead.py

Both have the same model, batches, groups, schedule, clipping and fused AdamW, and take turns of ten steps in
the same processes: a pair has two neighbours in time, whatever else the machine does meanwhile.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median, quantiles
from time import perf_counter, thread_time
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from distopt import Runner, comm
from distopt.callbacks import Callback, Run
from distopt.config import Config, validate
from distopt.models import ByteGPT

LOG_EVERY = 10
TURN = LOG_EVERY
"""Steps: a turn of the runner's has one row in it, which is written after its fifth step."""
LR, WEIGHT_DECAY, RISE = 1e-3, 0.1, 10


@dataclass(frozen=True)
class Size:
    """What a step computes.

    Attributes:
        model: Arguments of ByteGPT.
        batch_size: Global.
    """

    model: dict[str, Any]
    batch_size: int


SIZES = {
    "ddp": {
        "4 ms": Size({"width": 32, "depth": 3}, 4),
        "10 ms": Size({"width": 64, "depth": 4}, 8),
        "50 ms": Size({"width": 128, "depth": 3}, 24),
        "70 ms": Size({"width": 128, "depth": 4}, 28),
    },
    "fsdp": {"16 ms": Size({"width": 32, "depth": 2}, 4), "100 ms": Size({"width": 128, "depth": 4}, 32)},
}
"""Strategy → about how long a step takes on two cores → what it is."""


HEAD = """\
| strategy | step | hand ms | distopt ms | ratio | half of the pairs | logging included | CPU time |
| --- | --- | --- | --- | --- | --- | --- | --- |"""


class Moment(NamedTuple):
    """When a step was done, in seconds."""

    wall: float
    cpu: float
    """What the main thread has computed until then; waiting for the other rank, or for a core, is no part."""


class Timing(NamedTuple):
    """Seconds per step of one turn."""

    median: float
    """Of single steps, without those in which the runner writes a row."""
    mean: float
    """Of all."""
    cpu: float
    """As `median`, of the main thread."""


class Row(NamedTuple):
    """One line of the table: a strategy and a size, and the turns in the order they were taken."""

    strategy: str
    step: str
    hand: list[Timing]
    runner: list[Timing]


class Windows(Dataset[Tensor]):
    """Random bytes: (context + 1,) of int64."""

    def __init__(self, context: int, length: int = 2048) -> None:
        generator = torch.Generator().manual_seed(0)
        self.windows = torch.randint(256, (length, context + 1), generator=generator)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Tensor:
        return self.windows[index]


class Turns(Callback):
    """Lets a loop by hand take a turn after each of the runner's, in the middle between two rows.

    Args:
        by_hand: Takes a step each time that it is asked for one.
        skipped: The runner's steps before the first turn that is timed, of both.
    """

    def __init__(self, by_hand: Iterator[None], skipped: int) -> None:
        self.hand: list[Timing] = []
        self.runner: list[Timing] = []
        self._by_hand, self._skipped = by_hand, skipped
        self._times: list[Moment] = []

    def on_step(self, run: Run) -> None:
        self._times.append(now())
        if run.step % LOG_EVERY != LOG_EVERY // 2:
            return
        ours, theirs = self._times, [now()]
        for _ in range(TURN):
            next(self._by_hand)
            theirs.append(now())
        if run.step > self._skipped:
            self.runner.append(_timing(ours))
            self.hand.append(_timing(theirs))
        self._times = [now()]


def _timing(times: Sequence[Moment]) -> Timing:
    walls = [after.wall - before.wall for before, after in pairwise(times)]
    cpus = [after.cpu - before.cpu for before, after in pairwise(times)]
    # The row of a step is written after it, and so in the time of the next one.
    quiet = [i for i in range(len(walls)) if i != LOG_EVERY // 2]
    return Timing(median(walls[i] for i in quiet), fmean(walls), median(cpus[i] for i in quiet))


def now() -> Moment:
    return Moment(perf_counter(), thread_time())


def by_hand(strategy: str, size: Size, data: Windows, steps: int) -> Iterator[None]:
    """What one would write without distopt."""
    world = comm.World.from_env()
    torch.manual_seed(0)
    model: nn.Module = ByteGPT(**size.model, tie=False)
    if strategy == "fsdp":
        for block in model.blocks:  # type: ignore[union-attr]
            fully_shard(block)
        fully_shard(model)
    else:
        model = DistributedDataParallel(model.to(world.device), gradient_as_bucket_view=True)
    optimizer = torch.optim.AdamW(_groups(model), lr=LR, weight_decay=WEIGHT_DECAY, fused=True)
    parameters = list(model.parameters())
    losses = []
    data_batches = batches(data, size.batch_size, world)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LR * _factor(step, steps)
        loss = model(next(data_batches).to(world.device))["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % LOG_EVERY == 0:
            losses.append(loss.item())
        yield


def _config(work_dir: Path, strategy: str, size: Size, steps: int) -> Config:
    return validate(
        Config,
        {
            "work_dir": str(work_dir),
            "model": {"type": "ByteGPT", **size.model, "tie": False},
            "data": {"train": {"type": "benchmarks.overhead:Windows"}, "batch_size": size.batch_size},
            "max_steps": steps,
            "strategy": strategy,
            "optimizer": {
                "type": "AdamW",
                "lr": LR,
                "weight_decay": WEIGHT_DECAY,
                "fused": True,
                "paramwise_cfg": {"norm_decay_mult": 0, "bias_decay_mult": 0},
            },
            "param_scheduler": [
                {"type": "LinearLR", "by_epoch": False, "start_factor": 0.1, "end": RISE},
                {"type": "CosineAnnealingLR", "by_epoch": False, "begin": RISE},
            ],
            "clip_grad": {"max_norm": 1.0},
            "log": {"every": LOG_EVERY},
        },
    )


def _groups(model: nn.Module) -> list[dict[str, Any]]:
    norms = [p for m in model.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()]
    of_norms = {id(p) for p in norms}
    others = [(name, p) for name, p in model.named_parameters() if id(p) not in of_norms]
    return [
        {"params": [p for name, p in others if not name.endswith("bias")]},
        {"params": norms, "weight_decay": 0.0},
        {"params": [p for name, p in others if name.endswith("bias")], "weight_decay": 0.0},
    ]


def _factor(step: int, steps: int) -> float:
    """Of the learning rate: up in a line, down along half a cosine."""
    if step < RISE:
        return 0.1 + 0.9 * step / (RISE - 1)
    return (1 + math.cos(math.pi * (step - RISE) / (steps - RISE))) / 2


def batches(data: Windows, batch_size: int, world: comm.World) -> Iterator[Tensor]:
    sampler: DistributedSampler[Tensor] = DistributedSampler(data, world.size, world.rank)
    loader = DataLoader(data, batch_size // world.size, sampler=sampler)
    while True:
        yield from loader


@contextmanager
def _work_dir() -> Iterator[Path]:
    """A directory that all ranks of this machine share for the `with` block."""
    with tempfile.TemporaryDirectory() as own:
        path = [own]
        dist.broadcast_object_list(path)
        yield Path(path[0])
        dist.barrier()


def measure(strategy: str, step: str, size: Size, *, runs: int, pairs: int) -> Row:
    """Lets both train beside each other `runs` times, `pairs` turns of each after one that is not timed."""
    data = Windows(context=size.model.get("context", 64))
    steps = TURN * (pairs + 2)
    row = Row(strategy, step, [], [])
    for _ in range(runs):
        turns = Turns(by_hand(strategy, size, data, steps), skipped=2 * TURN)
        with _work_dir() as work_dir, (work_dir / "stdout").open("a") as stdout, redirect_stdout(stdout):
            config = _config(work_dir / "run", strategy, size, steps)
            Runner(config, train_data=data, callbacks=[turns]).train()
        row.hand.extend(turns.hand[:pairs])
        row.runner.extend(turns.runner[:pairs])
    return row


def line(row: Row) -> str:
    """A line of the table: milliseconds, and ratios distopt / hand of pairs; medians over turns."""
    hand, runner = (median(t.median for t in timings) for timings in (row.hand, row.runner))
    pairs = list(zip(row.runner, row.hand, strict=True))
    least, ratio, most = quantiles((ours.median / theirs.median for ours, theirs in pairs), n=4)
    of_means = median(ours.mean / theirs.mean for ours, theirs in pairs)
    of_cpu = median(ours.cpu / theirs.cpu for ours, theirs in pairs)
    return (
        f"| {row.strategy} | {row.step} | {1e3 * hand:.2f} | {1e3 * runner:.2f} | {ratio:.3f}"
        f" | {least:.3f}–{most:.3f} | {of_means:.3f} | {of_cpu:.3f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=25, help="of turns, in each run")
    parser.add_argument("--only", help="one size alone: `10 ms`")
    args = parser.parse_args()
    world = comm.World.from_env()

    def show(text: str) -> None:
        if world.is_main:
            print(text, flush=True)

    show(HEAD)
    with comm.process_group(world):
        for strategy, sizes in SIZES.items():
            for step, size in sizes.items():
                if args.only in (None, step):
                    show(line(measure(strategy, step, size, runs=args.runs, pairs=args.pairs)))


if __name__ == "__main__":
    main()
