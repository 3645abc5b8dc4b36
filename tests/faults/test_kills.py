"""Killed at any moment, started again: in the end the same parameters, bitwise."""

from __future__ import annotations

import os
import random
import signal
import threading
from pathlib import Path

import pytest
import torch

from distopt.checkpoint import directory
from tests.kit import run_distributed
from tests.kit.distributed import RankError
from tests.runs import CONFIG, losses, status, train, write_config

CHANGES = {"deterministic": True, "checkpoint": {"every": 1}, "model": {**CONFIG["model"], "dropout": 0.1}}


def _train_until_killed(path: Path, victims: list[int], seconds: float) -> dict[str, torch.Tensor]:
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))
    if torch.distributed.get_rank() in victims:
        timer.start()
    try:
        return train(path)
    finally:
        timer.cancel()


def _kill_and_compare(folder: Path, strategy: str, kills: int, seed: int) -> int:
    """Starts and kills a run until it has ended; how many starts were killed."""
    (folder / "whole").mkdir()
    whole = write_config(folder / "whole", strategy=strategy, **CHANGES)
    expected = run_distributed(train, whole)[0]
    path, chance, killed = write_config(folder, strategy=strategy, **CHANGES), random.Random(seed), 0
    parameters = None
    while parameters is None:
        victims = chance.choice([[0], [1], [0, 1]]) if killed < kills else []
        try:
            parameters = run_distributed(_train_until_killed, path, victims, chance.uniform(0.0, 1.2))[0]
        except RankError:
            killed += 1
    if not parameters:  # it had ended before the last start
        parameters = run_distributed(train, path, "max_steps=13")[0]
        expected = run_distributed(train, whole, "max_steps=13")[0]
    assert status(folder / "run")["state"] == "done"
    assert all(torch.equal(parameters[name], value) for name, value in expected.items())
    assert losses(folder / "run") == losses(folder / "whole" / "run")
    assert all(directory.damage(path, (0, 1)) is None for path in directory.committed(folder / "run"))
    return killed


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_run_that_is_killed_at_random_ends_bitwise_as_one_that_is_not(tmp_path, strategy):
    _kill_and_compare(tmp_path, strategy, kills=3, seed=1)


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("seed", range(5))
def test_runs_that_are_killed_many_times_end_bitwise_as_ones_that_are_not(tmp_path, strategy, seed):
    _kill_and_compare(tmp_path, strategy, kills=6, seed=seed)
