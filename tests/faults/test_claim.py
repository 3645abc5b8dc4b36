"""Two starts never write into one run directory at a time."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch.distributed as dist

from distopt import ConfigError, claim
from distopt.checkpoint import directory
from distopt.claim import Claim
from tests.kit import run_distributed
from tests.kit.distributed import RankError
from tests.runs import rows, train, write_config


def _train_without_patience(path: Path) -> None:
    claim.PATIENCE = 0.0
    train(path)


def _take(work_dir: Path) -> int:
    Claim(work_dir).take()
    return os.getpid()


def _take_and_be_killed(work_dir: Path) -> None:
    _take(work_dir)
    os.kill(os.getpid(), signal.SIGKILL)


def _take_from_one_that_ends(work_dir: Path) -> None:
    """Rank 1 waits until rank 0, which has it, lets go."""
    mine = Claim(work_dir)
    if dist.get_rank() == 0:
        with mine:
            mine.take()
            dist.barrier()
    else:
        dist.barrier()
        mine.take()


def test_a_start_beside_another_is_refused_and_writes_nothing(tmp_path):
    path = write_config(tmp_path)
    with Claim(tmp_path / "run") as mine:
        mine.take()
        with pytest.raises(RankError) as refused:
            run_distributed(_train_without_patience, path)
    said = str(refused.value)
    assert "work_dir: another start is writing to it: process " in said
    assert f"process {os.getpid()} on " in said
    assert "rank 1 of 2 raised" in said
    assert [found.name for found in (tmp_path / "run").iterdir()] == [".lock"]


def test_a_start_waits_for_one_that_is_about_to_end(tmp_path):
    run_distributed(_take_from_one_that_ends, tmp_path)


def test_one_that_was_killed_holds_nothing(tmp_path):
    with pytest.raises(RankError, match="SIGKILL"):
        run_distributed(_take_and_be_killed, tmp_path, world=1)
    with Claim(tmp_path) as mine:
        mine.take()


def test_one_that_was_refused_can_start_when_the_other_has_ended(tmp_path):
    path = write_config(tmp_path)
    with Claim(tmp_path / "run") as mine:
        mine.take()
    run_distributed(train, path)
    assert len(rows(tmp_path / "run")) == 12


def test_what_was_read_before_another_start_saved_is_not_continued_from(tmp_path):
    mine = Claim(tmp_path)
    directory.step_directory(tmp_path, 4).mkdir(parents=True)
    with mine, pytest.raises(ConfigError, match="another start has saved checkpoints in it meanwhile"):
        mine.take()
