"""A fault that one rank alone meets: all end within seconds, and its reason is told once and on record."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from distopt.callbacks import Callback, Run
from distopt.failures import shared_failures
from tests.components import Failing, Windows
from tests.kit import run_distributed, run_torchrun
from tests.runs import status, train, write_config

HERE = __name__
SGD = {"type": "SGD", "lr": 0.1}


class FailingOn(Failing):
    """A model whose forward raises on one rank."""

    def __init__(self, rank: int) -> None:
        super().__init__(at=4 if rank == dist.get_rank() else -1)


class FailsOn(Callback):
    """Raises, exits or is killed on one rank, after the third step."""

    def __init__(self, rank: int, how: str = "raise") -> None:
        self.rank, self.how = rank, how

    def on_step(self, run: Run) -> None:
        if (run.world.rank, run.step) == (self.rank, 3):
            if self.how == "exit":
                sys.exit(0)
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ZeroDivisionError("a bug in the user's callback")


class UnopenedOn(Windows):
    """Raises on one rank when its length is asked for, before there is a process group."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.fails = int(os.environ["RANK"]) == rank

    def __len__(self) -> int:
        if self.fails:
            raise ZeroDivisionError("a bug in the user's dataset")
        return super().__len__()


def _raised(path: Path) -> str:
    """What a run raises on this rank."""
    try:
        train(path)
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def _parts(part: str, rank: int) -> dict:
    if part == "model":
        return {"model": {"type": f"{HERE}:FailingOn", "rank": rank}, "optimizer": SGD}
    return {"callbacks": [{"type": f"{HERE}:FailsOn", "rank": rank}]}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("part", ["model", "callback"])
def test_every_rank_ends_knowing_the_first_to_fail(tmp_path, part, rank, strategy):
    path = write_config(tmp_path, strategy=strategy, **_parts(part, rank))
    raised = run_distributed(_raised, path, world=2)
    fault = f"ZeroDivisionError: a bug in the user's {part}"
    assert raised[rank] == fault
    assert raised[1 - rank].startswith(f"PeerError: rank {rank} failed first: {fault}")
    found = status(tmp_path / "run")
    assert found["state"] == "failed"
    assert found["reason"].startswith(f"rank 0: {fault}" if rank == 0 else f"rank 1 failed first: {fault}")


def test_the_log_of_a_rank_that_follows_has_one_line_of_it(tmp_path):
    run_distributed(_raised, write_config(tmp_path, **_parts("callback", 1)))
    first, follows = ((tmp_path / "run" / "logs" / f"rank{rank}.log").read_text() for rank in (1, 0))
    assert first.count("Traceback") == 1
    assert follows.count("rank 1 failed first: ZeroDivisionError: a bug in the user's callback") == 1
    assert "Traceback" not in follows


def test_an_exit_in_the_middle_is_a_failure_of_all(tmp_path):
    callbacks = [{"type": f"{HERE}:FailsOn", "rank": 1, "how": "exit"}]
    follows, leaves = run_distributed(_raised, write_config(tmp_path, callbacks=callbacks))
    assert leaves == "SystemExit: 0"
    assert follows.startswith("PeerError: rank 1 failed first: SystemExit: 0")


def _fail_together() -> str:
    try:
        with shared_failures():
            dist.barrier()
            raise ZeroDivisionError
    except Exception as error:
        return type(error).__name__


def test_of_ranks_that_fail_alike_one_is_the_first():
    assert sorted(run_distributed(_fail_together, world=3)) == ["PeerError", "PeerError", "ZeroDivisionError"]


def _root_cause(stderr: str) -> str:
    """What torchrun says of it."""
    return stderr.partition("Root Cause")[2]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.system), 1])
def test_torchrun_names_the_first_to_fail_and_its_traceback_is_printed_once(tmp_path, rank):
    stderr = run_torchrun([str(write_config(tmp_path, **_parts("callback", rank)))]).stderr
    assert stderr.count(f"[rank{rank}]: ZeroDivisionError: a bug in the user's callback") == 1
    assert f"[rank{1 - rank}]:" not in stderr
    assert not any(word in stderr for word in ("gloo", "Connection closed", "PeerError"))
    assert f"rank      : {rank} " in _root_cause(stderr)
    assert "ZeroDivisionError: a bug in the user's callback" in _root_cause(stderr)


@pytest.mark.slow
def test_a_fault_before_there_is_a_process_group_ends_those_who_wait_to_join(tmp_path):
    data = {"train": {"type": f"{HERE}:UnopenedOn", "rank": 1}, "batch_size": 16}
    stderr = run_torchrun([str(write_config(tmp_path, data=data, eval=None))]).stderr
    assert "a bug in the user's dataset" in stderr
    assert not any(word in stderr for word in ("gloo", "Connection closed", "PeerError"))


@pytest.mark.slow
def test_a_rank_that_was_killed_is_named_even_where_it_was_the_one_to_say_so(tmp_path):
    callbacks = [{"type": f"{HERE}:FailsOn", "rank": 0, "how": "kill"}]
    stderr = run_torchrun([str(write_config(tmp_path, callbacks=callbacks))]).stderr
    assert "Traceback" not in stderr.partition("torch/distributed/elastic")[0]
    found = status(tmp_path / "run")
    assert found["state"] == "failed"
    assert found["reason"].startswith("rank 0 failed first: ended without a word: killed, or crashed")
