"""Killed at any moment, started again: in the end the same to the bit."""

from __future__ import annotations

import os
import random
import re
import signal
from pathlib import Path
from threading import Timer

import pytest
import torch.distributed as dist

from distopt import Runner, load_config
from distopt.callbacks import Callback, Run
from distopt.checkpoint import directory
from tests.faults.soak import Start, Tally, compare, poll, soak, soak_config
from tests.kit import run_distributed
from tests.kit.distributed import RankError
from tests.runs import STEPS, train


class Kill(Callback):
    """Kills its process some seconds after a step was taken; 0 is the start."""

    def __init__(self, step: int, seconds: float) -> None:
        self.step = step
        self.timer = Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))
        self.begin(0)

    def on_step(self, run: Run) -> None:
        self.begin(run.step)

    def begin(self, step: int) -> None:
        if step == self.step:
            self.timer.start()


def _train_until_killed(path: Path, victims: list[int], step: int, seconds: float) -> None:
    if dist.get_rank() not in victims:
        train(path)
        return
    kill = Kill(step, seconds)
    Runner(load_config(path), callbacks=[kill]).train()
    kill.timer.join()  # one that comes after the last step is a kill as well


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "kills"),
    [("ddp", [([0], 0), ([0, 1], 2), ([1], 3)]), ("fsdp", [([0], 1), ([1], 2), ([0, 1], 3)])],
)
def test_a_run_that_is_killed_ends_bitwise_as_one_that_is_not(tmp_path, strategy, kills):
    """At the start, or a random moment from that many steps after the last checkpoint."""
    run_distributed(train, soak_config(tmp_path / "whole", strategy, max_steps=STEPS))
    path, chance = soak_config(tmp_path, strategy, max_steps=STEPS), random.Random(strategy)
    for victims, steps in kills:
        newest = directory.newest(tmp_path / "run")
        step = directory.read_progress(newest).step + steps if newest and steps else steps
        with pytest.raises(RankError) as killed:
            run_distributed(_train_until_killed, path, victims, step, chance.uniform(0.0, 0.05))
        dead = re.findall(r"^rank (\d) of 2 died of SIGKILL", str(killed.value), re.M)
        assert dead, killed.value
        assert set(map(int, dead)) <= set(victims)  # of two, one may fail by the other's death before its own
        committed = directory.committed(tmp_path / "run")
        assert all(directory.damage(checkpoint, (0, 1)) is None for checkpoint in committed)
    run_distributed(train, path)
    assert compare(tmp_path / "run", tmp_path / "whole" / "run") == []


@pytest.mark.slow
def test_ranks_end_with_their_torchrun(tmp_path):
    path = soak_config(tmp_path, "ddp", max_steps=1_000_000)
    with Start(path) as start:
        poll(lambda: directory.newest(tmp_path / "run"))
        assert len(start.ranks()) == 2
        start.kill("torchrun", random.Random(0))
        assert start.wait() == -signal.SIGKILL


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_torchruns_that_are_killed_30_times_at_random_end_bitwise_as_one_that_is_not(tmp_path, strategy):
    tally = Tally()
    soak(tmp_path, strategy, kills=30, seed=1, tally=tally)
    print(tally)
    assert tally.kills.total() == 30
    assert {victim for victim, _ in tally.kills} == {"rank", "torchrun", "all"}
    assert "saving" in {doing for _, doing in tally.kills}
