"""Setting every group's values for a step: against torch's schedulers over the same groups.

    python benchmarks/schedule.py

All sides take turns in one process; a time is the median of single calls, in the fastest of several rounds.
"""

from __future__ import annotations

import argparse
import math
import warnings
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch.optim import lr_scheduler as torchs

from distopt import Schedule, build_schedule

GROUPS, STEPS = 100, 2_000
WARM_UP, DECAY = 200, 1_600
"""Up over the first, level, and down from the second on."""
ENTRIES: list[dict[str, Any]] = [
    {"type": "LinearLR", "by_epoch": False, "start_factor": 0.01, "end": WARM_UP},
    {"type": "CosineAnnealingLR", "by_epoch": False, "begin": WARM_UP, "end": DECAY, "eta_min_ratio": 0.1},
    {"type": "LinearLR", "by_epoch": False, "start_factor": 1.0, "end_factor": 0.0, "begin": DECAY},
]


def optimizer(groups: int) -> torch.optim.Optimizer:
    """With layer-wise learning rates, one for each group."""
    return torch.optim.AdamW(
        [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 1e-3 * 0.99**i} for i in range(groups)],
        lr=1e-3,
    )


def _factor(step: int) -> float:
    """The three entries by hand."""
    if step < WARM_UP:
        return 0.01 + 0.99 * step / (WARM_UP - 1)
    k = min(step, DECAY - 1) - WARM_UP
    value = 0.1 + 0.9 * (1 + math.cos(math.pi * k / (DECAY - WARM_UP))) / 2
    if step >= DECAY:
        value *= 1 - (step - DECAY) / (STEPS - DECAY - 1)
    return value


def by_lambda(opt: torch.optim.Optimizer) -> torchs.LRScheduler:
    """One function of the step."""
    return torchs.LambdaLR(opt, _factor)


def by_sequence(opt: torch.optim.Optimizer) -> torchs.LRScheduler:
    """A scheduler for each entry, one after the other."""
    parts: list[torchs.LRScheduler] = [
        torchs.LinearLR(opt, 0.01, 1.0, WARM_UP - 1),
        torchs.CosineAnnealingLR(opt, DECAY - WARM_UP, eta_min=1e-4),
        torchs.LinearLR(opt, 0.1, 0.0, STEPS - DECAY - 1),
    ]
    return torchs.SequentialLR(opt, parts, milestones=[WARM_UP, DECAY])


def lrs(opt: torch.optim.Optimizer) -> list[float]:
    return [group["lr"] for group in opt.param_groups]


def _round(steps: int) -> tuple[float, float, float]:
    """Seconds of a call of each, the three in turns at every step of a run."""
    opts = [optimizer(GROUPS) for _ in range(3)]
    schedule: Schedule = build_schedule(opts[0], ENTRIES, max_steps=STEPS)
    one, several = by_lambda(opts[1]), by_sequence(opts[2])
    times: tuple[list[float], list[float], list[float]] = ([], [], [])
    for step in range(1, steps):
        start = perf_counter()
        schedule.apply(step)
        applied = perf_counter()
        one.step()
        stepped = perf_counter()
        several.step()
        end = perf_counter()
        for of, seconds in zip(times, (applied - start, stepped - applied, end - stepped), strict=True):
            of.append(seconds)
        if step % 100 == 0:
            assert all(
                math.isclose(ours, theirs, rel_tol=1e-9, abs_tol=1e-15)
                for ours, theirs in zip(lrs(opts[0]), lrs(opts[1]), strict=True)
            )
    ours, lambdas, sequences = map(median, times)
    return ours, lambdas, sequences


def line(rounds: int, steps: int = STEPS) -> str:
    """A line of the table, in microseconds."""
    ours, lambdas, sequences = map(min, zip(*(_round(steps) for _ in range(rounds)), strict=True))
    cells = (
        f"{GROUPS}",
        f"{len(ENTRIES)}",
        *(f"{1e6 * seconds:.1f}" for seconds in (ours, lambdas, sequences)),
    )
    return f"| {' | '.join(cells)} | {ours / lambdas:.2f} | {ours / sequences:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    warnings.filterwarnings("ignore", ".*lr_scheduler.step.*before")  # there is no optimizer step
    torch.set_num_threads(1)
    print(
        "| groups | entries | distopt µs | LambdaLR µs | SequentialLR µs | ratio to the one | to the other |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    print(line(rounds))


if __name__ == "__main__":
    main()
