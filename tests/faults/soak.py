"""Starts a run under a real torchrun, kills it at random, starts it again, and compares what comes out.

    python -m tests.faults.soak --kills 100 --seed 0 --strategy fsdp
    python -m tests.faults.soak --mutations 300

A kill hits a rank, torchrun alone, or all of it, at a random time, after a random step, or while a checkpoint
is being written. What it met is told from what it left behind, not from what it was aimed at.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import state_dict_loader

from distopt.checkpoint import directory
from distopt.checkpoint.reader import TensorReader
from tests.faults.mutations import MUTATIONS, verify
from tests.runs import CONFIG, rows, status, write_config

STEPS = 60
KILLS_PER_RUN = 6
PLANS = [(victim, aim) for victim in ("rank", "torchrun", "all") for aim in ("time", "step", "save")]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--local-addr=127.0.0.1"]


@dataclass
class Tally:
    """What a soak has done so far."""

    kills: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(victim, what it was doing) → how many."""
    starts: int = 0
    runs: int = 0
    matches: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        lines = [f"{'victim':<10}{'met while':<12}kills"]
        lines += [f"{victim:<10}{doing:<12}{count}" for (victim, doing), count in sorted(self.kills.items())]
        total = (
            f"{self.kills.total()} kills in {self.starts} starts of {self.runs} runs, {self.seconds:.0f} s"
        )
        return "\n".join([*lines, f"{total}: {self.matches} of {self.runs} end as the uninterrupted run"])


class Start:
    """A torchrun with its ranks, all of which are known by a variable in their environment.

    Args:
        config: What it trains.
        *options: Of torchrun.
        nproc: How many ranks.
    """

    def __init__(self, config: Path, *options: str, nproc: int = 2) -> None:
        mark = f"DISTOPT_SOAK={time.monotonic_ns()}"
        self._mark = mark.encode()
        self.output = config.with_name(f"{mark}.log")
        command = [*TORCHRUN, f"--nproc_per_node={nproc}", *(options or ["--standalone"])]
        with self.output.open("w") as output:
            self.torchrun = subprocess.Popen(
                [*command, "-m", "distopt.train", str(config)],
                env={**os.environ, "OMP_NUM_THREADS": "1", **dict([mark.split("=")])},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def runs(self) -> bool:
        return self.torchrun.poll() is None

    def processes(self) -> list[int]:
        """What is left of it, torchrun included."""
        return [pid for pid, environment in _environments() if self._mark in environment]

    def ranks(self) -> list[int]:
        """The process ids of the ranks that live, in whatever order."""
        return [
            pid
            for pid, environment in _environments()
            if self._mark in environment and any(entry.startswith(b"RANK=") for entry in environment)
        ]

    def kill(self, victim: str, chance: random.Random) -> bool:
        """By SIGKILL: `rank`, `torchrun` or `all`; whether there was something to kill."""
        ranks = self.ranks()
        if not self.runs or (victim == "rank" and not ranks):
            return False
        torchrun = self.torchrun.pid
        pids = {"rank": ranks and [chance.choice(ranks)], "torchrun": [torchrun], "all": [torchrun, *ranks]}
        for pid in pids[victim]:
            with suppress(ProcessLookupError):  # a rank ends with torchrun
                os.kill(pid, signal.SIGKILL)
        return True

    def wait(self, timeout: float = 120) -> int:
        """Until torchrun and all that it started are gone; its exit status."""
        try:
            status = self.torchrun.wait(timeout)
            poll(lambda: not self.processes(), timeout)
        except BaseException as error:
            error.add_note(self.output.read_text(errors="replace"))
            raise
        return status

    def __enter__(self) -> Start:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill("all", random.Random())
        self.torchrun.wait()


def poll(condition: Callable[[], Any], timeout: float = 120) -> None:
    """Asks again and again until it is true."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not so after {timeout:g} s"
        time.sleep(0.001)  # the processes that are watched need the processor


def _environments() -> Iterator[tuple[int, list[bytes]]]:
    """Every live process, with its environment as it was when it started."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # gone meanwhile, or another user's
            yield int(folder.name), (folder / "environ").read_bytes().split(b"\0")


def soak_config(folder: Path, strategy: str, **changes: Any) -> Path:
    """A run of a second or two, which saves at every second step; dropout shows the random state."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "model": {**CONFIG["model"], "dropout": 0.1},
        "max_steps": STEPS,
        "eval": {"every": 10},
        "checkpoint": {"every": 2},
        "deterministic": True,
        "strategy": strategy,
    }
    return write_config(folder, **{**content, **changes})


def soak(folder: Path, strategy: str, kills: int, seed: int, tally: Tally) -> None:
    """Kills runs until there were so many kills; each run is brought to its end and compared."""
    began, chance = time.monotonic(), random.Random(seed)
    whole = soak_config(folder / "whole", strategy)
    run_to_end(whole)
    plans: list[tuple[str, str]] = []
    while kills > 0:
        config = soak_config(folder / f"run_{tally.runs}", strategy)
        for _ in range(min(kills, KILLS_PER_RUN)):
            plans = plans or chance.sample(PLANS, len(PLANS))
            kills -= _start_and_kill(config, *plans.pop(), chance, tally)
        tally.starts += 1
        run_to_end(config)
        tally.runs += 1
        differences = compare(config.with_name("run"), whole.with_name("run"))
        assert not differences, f"seed {seed}, {config.parent}: {differences}"
        tally.matches += 1
    tally.seconds += time.monotonic() - began


def run_to_end(config: Path, *options: str, nproc: int = 2) -> None:
    """A start that nobody kills."""
    with Start(config, *options, nproc=nproc) as start:
        assert start.wait() == 0, start.output.read_text()


def _start_and_kill(config: Path, victim: str, aim: str, chance: random.Random, tally: Tally) -> bool:
    """Whether a kill hit; a start that had ended before its moment came has not been killed."""
    run = config.with_name("run")
    done, left_behind = _step(run), _partial(run)
    tally.starts += 1
    with Start(config) as start:
        has_come = moment(aim, run, chance)
        poll(lambda: not start.runs or (has_come() and (victim != "rank" or start.ranks())))
        hit = start.kill(victim, chance)
        failed = start.wait() != 0
        assert hit or not failed, start.output.read_text()
    if not failed:
        return False
    saving = _partial(run) not in (None, left_behind)
    tally.kills[victim, "saving" if saving else "training" if _step(run) > done else "starting"] += 1
    for checkpoint in directory.committed(run):
        assert directory.damage(checkpoint, (0, 1)) is None, checkpoint
    return True


def moment(aim: str, run: Path, chance: random.Random) -> Callable[[], bool]:
    """What to ask again and again until it is true: then it is time to kill."""
    if aim == "time":
        end = time.monotonic() + chance.uniform(0.0, 6.0)
        return lambda: time.monotonic() >= end
    if aim == "step":
        step = _step(run) + chance.randint(1, STEPS // KILLS_PER_RUN)
        return lambda: _step(run) >= step
    before = _partial(run)
    count = chance.randint(1, 4)  # the first one of a start is soon

    def saves() -> bool:
        nonlocal before, count
        now = _partial(run)
        count -= bool(now and now != before)
        before = now
        return count == 0

    return saves


def _partial(run: Path) -> int | None:
    """The inode of the checkpoint that is being written, or was when the last start ended."""
    with suppress(OSError):  # it is complete meanwhile
        return max((path.stat().st_ino for path in run.glob("checkpoints/step_*[0-9].partial")), default=None)
    return None


def _step(run: Path) -> int:
    """The last one that is on record."""
    try:
        return rows(run)[-1]["step"]
    except (OSError, ValueError, IndexError):  # none yet, or half a line
        return 0


def compare(run: Path, whole: Path) -> list[str]:
    """In what a run differs from another one at its end; empty where they are the same to the bit."""
    found = [] if status(run)["state"] == "done" else [f"it is {status(run)['state']}"]
    mine, theirs = (state(directory.newest(folder)) for folder in (run, whole))
    found += [f"{key} is on one side only" for key in mine.keys() ^ theirs.keys()]
    found += [
        f"{key} differs" for key in mine.keys() & theirs.keys() if not torch.equal(mine[key], theirs[key])
    ]
    for kind in ("loss", "eval"):
        if _recorded(run, kind) != _recorded(whole, kind):
            found.append(f"metrics.jsonl differs in {kind}")
    return found


def state(checkpoint: Path | None) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint: weights, buffers, the optimizer's state, the ranks' random states."""
    assert checkpoint is not None
    reader = TensorReader(checkpoint)
    tensors = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype) for key, entry in reader.entries().items()
    }
    with warnings.catch_warnings(action="ignore"):  # that there is one process only
        state_dict_loader.load(tensors, storage_reader=reader, no_dist=True)
    return tensors


def _recorded(run: Path, kind: str) -> list[dict[str, Any]]:
    measured = {"perf", "time", "memory", "ranks"}  # which no two runs have alike
    return [{key: value for key, value in row.items() if key not in measured} for row in rows(run, kind)]


def mutate(folder: Path, count: int, seed: int) -> Counter[tuple[str, str]]:
    """Damages a checkpoint so many times; (kind, found or harmless) → how often."""
    config = soak_config(folder, "fsdp", max_steps=12, checkpoint={"every": 4})
    run_to_end(config)
    tally: Counter[tuple[str, str]] = Counter()
    for number in range(count):
        kind = MUTATIONS[number % len(MUTATIONS)]
        with tempfile.TemporaryDirectory(dir=folder) as copy:
            found = verify(config.with_name("run"), Path(copy), kind, seed + number)
        tally[kind.__name__, "found" if found else "harmless"] += 1
    return tally


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.faults.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--mutations", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--strategy", default="ddp", choices=["ddp", "fsdp"])
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak_"))  # kept where something was found
    if args.kills:
        tally = Tally()
        try:
            soak(folder / "kills", args.strategy, args.kills, args.seed, tally)
        finally:
            print(tally)
    if args.mutations:
        for (kind, outcome), number in sorted(
            mutate(folder / "mutations", args.mutations, args.seed).items()
        ):
            print(f"{kind:<20}{outcome:<10}{number}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
