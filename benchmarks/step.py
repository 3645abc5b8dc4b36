"""What a step of the runner is made of: torch's profiler over a few steps in the middle of a run.

torchrun --standalone --nproc_per_node=2 -m benchmarks.step
torchrun --standalone --nproc_per_node=2 -m benchmarks.step --strategy fsdp
"""

from __future__ import annotations

import argparse
from contextlib import redirect_stdout

from torch.autograd.profiler_util import FunctionEventAvg
from torch.profiler import ProfilerActivity, profile

from benchmarks.overhead import SIZES, Size, Windows, _config, _work_dir
from distopt import Runner, comm
from distopt.callbacks import Callback, Run

FIRST, LAST = 10, 30


class Trace(Callback):
    """Profiles the steps after FIRST up to LAST."""

    def __init__(self) -> None:
        self.profile = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])

    def on_step(self, run: Run) -> None:
        if run.step == FIRST:
            self.profile.__enter__()
        if run.step == LAST:
            self.profile.__exit__(None, None, None)


def events(strategy: str, size: Size) -> list[FunctionEventAvg]:
    """What ran, the most time of its own first."""
    trace, data = Trace(), Windows(context=size.model.get("context", 64))
    with _work_dir() as work_dir, (work_dir / "stdout").open("a") as stdout, redirect_stdout(stdout):
        config = _config(work_dir / "run", strategy, size, LAST + 1)
        Runner(config, train_data=data, callbacks=[trace]).train()
    averages = trace.profile.key_averages()
    return sorted(averages, key=lambda event: -event.self_cpu_time_total)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--strategy", choices=list(SIZES), default="ddp")
    parser.add_argument("--rows", type=int, default=25)
    args = parser.parse_args()
    world, steps = comm.World.from_env(), LAST - FIRST
    with comm.process_group(world):
        found = events(args.strategy, next(iter(SIZES[args.strategy].values())))
    if world.is_main:
        total = sum(event.self_cpu_time_total for event in found)
        print("| what | calls a step | µs a step | share |\n| --- | --- | --- | --- |")
        for event in found[: args.rows]:
            time = event.self_cpu_time_total
            print(f"| {event.key} | {event.count / steps:.1f} | {time / steps:.0f} | {time / total:.1%} |")


if __name__ == "__main__":
    main()
