"""What a logged row costs: ten steps with one beside the next ten without, again and again in one run.

    torchrun --standalone --nproc_per_node=2 -m benchmarks.monitoring

A run logs each tenth step by default; here each twentieth, so that of two blocks of ten one has a row.
"""

from __future__ import annotations

import argparse
from contextlib import redirect_stdout
from statistics import median, quantiles
from time import perf_counter
from typing import NamedTuple

from benchmarks.overhead import LOG_EVERY, SIZES, Size, Windows, _config, _work_dir
from distopt import Runner, comm
from distopt.callbacks import Callback, Run
from distopt.config import LogConfig

HEAD = """\
| strategy | step | without ms | logging ms | ratio | half of the pairs | a row, ms |
| --- | --- | --- | --- | --- | --- | --- |"""
PERIOD = 2 * LOG_EVERY


class Row(NamedTuple):
    """One line of the table: seconds of the mean step of each block, in pairs of neighbours."""

    strategy: str
    step: str
    without: list[float]
    logging: list[float]


class Clock(Callback):
    """When each step was done, in seconds."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step(self, run: Run) -> None:
        self.times.append(perf_counter())


def measure(strategy: str, step: str, size: Size, *, runs: int, pairs: int) -> Row:
    """Trains `runs` times, `pairs` pairs of blocks after a warm-up of one."""
    data = Windows(context=size.model.get("context", 64))
    row = Row(strategy, step, [], [])
    for _ in range(runs):
        clock = Clock()
        with _work_dir() as work_dir, (work_dir / "stdout").open("a") as stdout, redirect_stdout(stdout):
            config = _config(work_dir / "run", strategy, size, PERIOD * (pairs + 2))
            config = config.model_copy(update={"log": LogConfig(every=PERIOD)})
            Runner(config, train_data=data, callbacks=[clock]).train()
        for pair in range(1, pairs + 1):
            # The row of the pair's first step is written after it, in the time of the next.
            first = PERIOD * pair - LOG_EVERY // 2 - 1
            began, between, ended = (clock.times[first + i * LOG_EVERY] for i in range(3))
            row.logging.append((between - began) / LOG_EVERY)
            row.without.append((ended - between) / LOG_EVERY)
    return row


def line(row: Row) -> str:
    """A line of the table: medians over pairs."""
    without, logging = median(row.without), median(row.logging)
    ratios = [with_row / alone for with_row, alone in zip(row.logging, row.without, strict=True)]
    least, _, most = quantiles(ratios, n=4)
    each = LOG_EVERY * median(a - b for a, b in zip(row.logging, row.without, strict=True))
    return (
        f"| {row.strategy} | {row.step} | {1e3 * without:.2f} | {1e3 * logging:.2f} | {median(ratios):.3f}"
        f" | {least:.3f}–{most:.3f} | {1e3 * each:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=30, help="of blocks of ten steps, in each run")
    parser.add_argument("--only", help="one size alone: `10 ms`")
    args = parser.parse_args()
    world = comm.World.from_env()
    if world.is_main:
        print(HEAD, flush=True)
    with comm.process_group(world):
        for strategy, sizes in SIZES.items():
            for step, size in sizes.items():
                if args.only in (None, step):
                    row = measure(strategy, step, size, runs=args.runs, pairs=args.pairs)
                    if world.is_main:
                        print(line(row), flush=True)


if __name__ == "__main__":
    main()
