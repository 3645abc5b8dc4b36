"""A run that logs as by default, every ten steps, against one that logs its first and last step alone.

    torchrun --standalone --nproc_per_node=2 -m benchmarks.monitoring

Both take turns in the same processes; what is compared is the mean step, in which each row has its part.
"""

from __future__ import annotations

import argparse
from contextlib import redirect_stdout
from itertools import pairwise
from statistics import fmean, median
from typing import NamedTuple

from benchmarks.overhead import SIZES, WARM_UP, Clock, Size, Windows, _config, _work_dir
from distopt import Runner, comm
from distopt.config import LogConfig

HEAD = """\
| strategy | step | without ms | logging ms | ratio | spread over pairs | a row, ms |
| --- | --- | --- | --- | --- | --- | --- |"""
NEVER = 10**9


class Row(NamedTuple):
    """One line of the table: seconds of the mean step, of each repetition in the order they were made."""

    strategy: str
    step: str
    without: list[float]
    logging: list[float]


def mean_step(strategy: str, size: Size, data: Windows, steps: int, warm_up: int, log: LogConfig) -> float:
    """Seconds per step of a run, after its warm-up and before its last step, which every run logs."""
    clock = Clock()
    with _work_dir() as work_dir, (work_dir / "stdout").open("a") as stdout, redirect_stdout(stdout):
        config = _config(work_dir / "run", strategy, size, warm_up + steps + 1)
        config = config.model_copy(update={"log": log})
        Runner(config, train_data=data, callbacks=[clock]).train()
    return fmean(after.wall - before.wall for before, after in pairwise(clock.times[warm_up - 1 : -1]))


def measure(strategy: str, step: str, size: Size, *, pairs: int, steps: int, warm_up: int = WARM_UP) -> Row:
    """Lets both train `pairs` times, in turns."""
    data = Windows(context=size.model.get("context", 64))
    row = Row(strategy, step, [], [])
    for _ in range(pairs):
        for times, log in ((row.without, LogConfig(every=NEVER)), (row.logging, LogConfig())):
            times.append(mean_step(strategy, size, data, steps, warm_up, log))
    return row


def line(row: Row) -> str:
    """A line of the table: times are medians over repetitions, in milliseconds; so is the ratio, of pairs."""
    without, logging = median(row.without), median(row.logging)
    ratios = [with_rows / alone for with_rows, alone in zip(row.logging, row.without, strict=True)]
    each = median(a - b for a, b in zip(row.logging, row.without, strict=True)) * LogConfig().every
    return (
        f"| {row.strategy} | {row.step} | {1e3 * without:.2f} | {1e3 * logging:.2f} | {median(ratios):.3f}"
        f" | {min(ratios):.3f}–{max(ratios):.3f} | {1e3 * each:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=7, help="repetitions of each")
    parser.add_argument("--steps", type=int, default=100, help="timed steps of a repetition")
    parser.add_argument("--only", help="one size alone: `10 ms`")
    args = parser.parse_args()
    world = comm.World.from_env()
    if world.is_main:
        print(HEAD, flush=True)
    with comm.process_group(world):
        for strategy, sizes in SIZES.items():
            for step, size in sizes.items():
                if args.only in (None, step):
                    row = measure(strategy, step, size, pairs=args.pairs, steps=args.steps)
                    if world.is_main:
                        print(line(row), flush=True)


if __name__ == "__main__":
    main()
