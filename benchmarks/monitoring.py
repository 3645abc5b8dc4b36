"""What a logged row costs: the steps that have one in them beside their neighbours that have none.

    torchrun --standalone --nproc_per_node=2 -m benchmarks.monitoring

Each tenth step has a row, as by default. It is measured in its own step and written in the next one, and what
it delays has come to rest a step later: so these three are compared with the seven around them.
"""

from __future__ import annotations

import argparse
from contextlib import redirect_stdout
from itertools import pairwise
from statistics import fmean, median, quantiles
from time import perf_counter
from typing import NamedTuple

from benchmarks.overhead import LOG_EVERY, SIZES, Size, Windows, _config, _work_dir
from distopt import Runner, comm
from distopt.callbacks import Callback, Run

HEAD = """\
| strategy | step | without ms | a row, ms | half of the rows | ratio |
| --- | --- | --- | --- | --- | --- |"""
BEFORE, CONCERNED = 3, 3
"""Steps: without a row, and then with something of it; the rest of ten have none."""


class Row(NamedTuple):
    """One line of the table: seconds."""

    strategy: str
    step: str
    quiet: list[float]
    """The mean step without a row, of each ten."""
    costs: list[float]
    """What the row of each ten has taken."""


class Clock(Callback):
    """When each step was done, in seconds."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step(self, run: Run) -> None:
        self.times.append(perf_counter())


def measure(strategy: str, step: str, size: Size, *, runs: int, rows: int) -> Row:
    """Trains `runs` times, for `rows` rows each after a warm-up of one."""
    data = Windows(context=size.model.get("context", 64))
    row = Row(strategy, step, [], [])
    for _ in range(runs):
        clock = Clock()
        with _work_dir() as work_dir, (work_dir / "stdout").open("a") as stdout, redirect_stdout(stdout):
            config = _config(work_dir / "run", strategy, size, LOG_EVERY * (rows + 2))
            Runner(config, train_data=data, callbacks=[clock]).train()
        steps = [after - before for before, after in pairwise(clock.times)]  # of the second, and so on
        for logged in range(2 * LOG_EVERY, LOG_EVERY * (rows + 2), LOG_EVERY):
            ten = steps[logged - 2 - BEFORE :][:LOG_EVERY]
            quiet = fmean(ten[:BEFORE] + ten[BEFORE + CONCERNED :])
            row.quiet.append(quiet)
            row.costs.append(sum(ten) - LOG_EVERY * quiet)
    return row


def line(row: Row) -> str:
    """A line of the table: medians over rows, and the ratio of ten steps with one to ten without."""
    quiet = median(row.quiet)
    least, cost, most = quantiles(row.costs, n=4)
    return (
        f"| {row.strategy} | {row.step} | {1e3 * quiet:.2f} | {1e3 * cost:.2f}"
        f" | {1e3 * least:.2f}–{1e3 * most:.2f} | {1 + cost / (LOG_EVERY * quiet):.3f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--rows", type=int, default=60, help="of each run")
    parser.add_argument("--only", help="one size alone: `10 ms`")
    args = parser.parse_args()
    world = comm.World.from_env()
    if world.is_main:
        print(HEAD, flush=True)
    with comm.process_group(world):
        for strategy, sizes in SIZES.items():
            for step, size in sizes.items():
                if args.only in (None, step):
                    row = measure(strategy, step, size, runs=args.runs, rows=args.rows)
                    if world.is_main:
                        print(line(row), flush=True)


if __name__ == "__main__":
    main()
