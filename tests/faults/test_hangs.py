"""A rank that hangs is found, named as the cause, and ended with all the others; their stacks are written."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
import torch.distributed as dist

from distopt.callbacks import Callback, Run
from distopt.hangs import Report, judge
from distopt.progress import Mark, Place
from tests.kit import run_torchrun
from tests.runs import status, write_config

HERE = __name__
MINUTES = 0.1


class Hangs(Callback):
    """On one rank, after the third step."""

    def __init__(self, rank: int, how: str) -> None:
        self.rank, self.how = rank, how

    def on_step(self, run: Run) -> None:
        if (run.world.rank, run.step) == (self.rank, 3):
            getattr(self, self.how)()

    def wait_for_ever(self) -> None:
        threading.Event().wait()

    def stand_still(self) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    def hold_the_gil(self) -> None:
        ctypes.PyDLL(None).sleep(600)

    def wait_for_another(self) -> None:
        dist.recv(torch.empty(1), src=1 - self.rank, tag=7)


def _run(folder: Path, rank: int, how: str) -> CompletedProcess[str]:
    callbacks = [{"type": f"{HERE}:Hangs", "rank": rank, "how": how}]
    done = run_torchrun([str(write_config(folder, callbacks=callbacks, hang_timeout=MINUTES, eval=None))])
    assert done.returncode == 1
    return done


def _stacks(folder: Path, rank: int) -> str:
    return (folder / "run" / "logs" / f"rank{rank}.stacks.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "how", "tail"),
    [
        (1, "wait_for_ever", "; see hang_timeout"),
        pytest.param(
            0,
            "wait_for_another",
            ", where it waits for ranks that are elsewhere; see hang_timeout",
            marks=pytest.mark.system,
        ),
    ],
)
def test_the_cause_is_named_with_its_place_and_all_stacks_are_written(tmp_path, rank, how, tail):
    stderr = _run(tmp_path, rank, how).stderr
    reason = status(tmp_path / "run")["reason"]
    assert status(tmp_path / "run")["state"] == "failed"
    assert reason.startswith(f"rank {rank} failed first: no progress for 6 s in {__file__}:")
    assert reason.endswith(f" ({how}){tail}")
    assert stderr.partition("Traceback")[0].count(reason) == 1
    root_cause = stderr.partition("Root Cause")[2]
    assert f"rank      : {rank} " in root_cause
    assert reason in root_cause
    assert f"in {how}\n" in _stacks(tmp_path, rank)
    assert "in all_gather\n" in _stacks(tmp_path, 1 - rank)
    assert f"rank {1 - rank}: step 3, in " in _stacks(tmp_path, rank)


@pytest.mark.system  # torchrun takes half a minute to kill it
@pytest.mark.parametrize("how", ["stand_still", "hold_the_gil"])
def test_a_rank_that_can_say_nothing_is_named_by_another(tmp_path, how):
    rank = 0 if how == "stand_still" else 1
    stderr = _run(tmp_path, rank, how).stderr
    found = status(tmp_path / "run")
    assert found["state"] == "failed"
    assert found["reason"].startswith(f"rank {rank} failed first: silent for 6 s: stopped, or in a call")
    assert "in all_gather\n" in _stacks(tmp_path, 1 - rank)
    if how == "hold_the_gil":
        log = (tmp_path / "run" / "logs" / "rank1.log").read_text()
        assert "in hold_the_gil" in log + stderr  # the log may be younger than the watchdog's last beat


WAITING = Place("distopt/comm.py:1 (reduce)", waits=True, is_ours=True)
ELSEWHERE = Place("mine.py:2 (on_step)", waits=False)
COLLECTIVE = Place("mine.py:3 (on_step)", waits=True)


def _judged(*ranks: tuple[int, Place]) -> str:
    """What rank 0 says of ranks that are at these marks and places."""
    reports = {rank: Report(9, Mark(number, number, "step"), at) for rank, (number, at) in enumerate(ranks)}
    earlier = {rank: report._replace(beats=5) for rank, report in reports.items()}
    return str(judge(earlier, reports, rank=0, seconds=60))


@pytest.mark.parametrize(
    ("ranks", "said"),
    [
        ([(3, WAITING), (3, ELSEWHERE)], "rank 1 failed first: no progress for 60 s in mine.py:2 (on_step);"),
        ([(3, ELSEWHERE), (3, WAITING)], "rank 0 failed first: no progress for 60 s in mine.py:2 (on_step);"),
        ([(3, WAITING), (2, ELSEWHERE), (3, ELSEWHERE)], "rank 1 failed first: no progress for 60 s in mine"),
        ([(3, WAITING), (2, WAITING)], "where it waits for ranks that are elsewhere"),
        (
            [(3, WAITING), (3, COLLECTIVE)],
            "rank 1 failed first: no progress for 60 s in mine.py:3 (on_step),",
        ),
        ([(3, WAITING), (3, WAITING)], "rank 0 failed first: no progress for 60 s in distopt/comm.py:1 (red"),
    ],
)
def test_the_cause_does_not_wait_or_is_behind_or_waits_elsewhere(ranks, said):
    assert said in _judged(*ranks)


def test_a_rank_whose_watchdog_is_silent_comes_before_one_that_does_not_wait():
    later = {rank: Report(9, Mark(3, 3, "step"), ELSEWHERE) for rank in range(3)}
    earlier = later | {0: later[0]._replace(beats=5), 1: later[1]._replace(beats=5)}
    failure = judge(earlier, later, rank=0, seconds=60)
    assert (failure.rank, failure.silent, failure.told_by) == (2, (2,), 0)
