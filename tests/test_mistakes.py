"""A mistake that one rank alone comes upon: said once, by rank 0, and on record."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from distopt import ConfigError
from distopt.callbacks import Callback, Run
from distopt.failures import shared_failures
from distopt.faults import held_signals, stop_signals
from tests.components import Windows
from tests.covering import left_to_system
from tests.kit import RankError, run_distributed, run_torchrun
from tests.runs import status, write_config

HERE = __name__


class BadEnd(Callback):
    """Raises on rank 1 when the run is over."""

    def on_end(self, run: Run) -> None:
        if run.world.rank == 1:
            raise ConfigError("url", "does not answer")


class BadThirdBatch(Windows):
    """Raises where `rank`, or every one, reads its third batch."""

    def __init__(self, rank: int | None) -> None:
        super().__init__()
        self.fails = rank is None or rank == int(os.environ["RANK"])
        self.reads = 0

    def __getitems__(self, indices: list[int]) -> list[torch.Tensor]:
        self.reads += 1
        if self.fails and self.reads == 4:  # a first batch was read before the first
            raise FileNotFoundError("no such picture")
        return [self[i] for i in indices]


def said(folder: Path, rank: int | None, strategy: str, num_workers: int = 0) -> str:
    """What torchrun with such data has on stderr."""
    data = {"train": {"type": f"{HERE}:BadThirdBatch", "rank": rank}, "batch_size": 16}
    changes = {"data": data | {"num_workers": num_workers}, "eval": None, "strategy": strategy}
    done = run_torchrun([str(write_config(folder, **changes))])
    assert done.returncode == 1
    return done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "num_workers", "rank"),
    left_to_system(
        product(("ddp", "fsdp"), (0, 1), (0, 1, None)),
        but=[("ddp", 0, 0), ("ddp", 0, None), ("fsdp", 1, 1)],
    ),
)
def test_it_is_said_once_and_is_the_reason_on_record(tmp_path, strategy, num_workers, rank):
    stderr = said(tmp_path, rank, strategy, num_workers)
    assert stderr.count("BadThirdBatch.__getitems__([") == 1
    assert stderr.count("raised FileNotFoundError: no such picture") == 1
    if rank is not None:
        assert ("data.train: rank 1: BadThirdBatch" in stderr) == (rank == 1)
    assert stderr.count("Traceback") == 1  # torchrun's own
    assert not any(word in stderr for word in ("gloo", "Connection closed"))
    record = status(tmp_path / "run")
    assert (record["state"], record["step"]) == ("failed", 2)
    assert "BadThirdBatch.__getitems__([" in record["reason"]
    for log in ("rank0.log", "rank1.log"):
        assert "stopped by data.train: " in (tmp_path / "run" / "logs" / log).read_text()


@pytest.mark.slow
def test_a_mistake_at_the_end_of_a_run_is_said_and_on_record_too(tmp_path):
    config = write_config(tmp_path, max_steps=1, callbacks=[{"type": f"{HERE}:BadEnd"}])
    stderr = run_torchrun([str(config)]).stderr
    assert stderr.count("callbacks.0.url: rank 1: does not answer") == 1
    assert stderr.count("Traceback") == 1  # torchrun's own
    assert status(tmp_path / "run")["state"] == "failed"


class Unopened(Windows):
    """Raises on those ranks when it is made."""

    def __init__(self, ranks: list[int]) -> None:
        if int(os.environ["RANK"]) in ranks:
            raise OSError("not mounted")
        super().__init__()


@pytest.mark.slow
@pytest.mark.parametrize("ranks", left_to_system([[0], [1], [0, 1]], but=[[1]]))
def test_a_mistake_before_there_is_a_process_group_is_heard_of(tmp_path, ranks):
    data = {"train": {"type": f"{HERE}:Unopened", "ranks": ranks}, "batch_size": 16}
    stderr = run_torchrun([str(write_config(tmp_path, data=data, eval=None))]).stderr
    assert stderr.count("raised OSError: not mounted") == 1
    assert ("data.train: rank 1: " in stderr) == (ranks == [1])
    assert stderr.count("Traceback") == 1  # torchrun's own


TOLD = "data.train: {0}cannot be read\n  given:    17\n  allowed:  pictures\nseed: {0}is odd"


def mistake() -> ConfigError:
    wrong = ConfigError("data.train", "cannot be read", given=17, allowed="pictures")
    return ConfigError.many([wrong, ConfigError("seed", "is odd")])


def wait(group: dist.ProcessGroup | None = None) -> None:
    dist.all_reduce(torch.ones(2), group=group)


def wait_in_the_shadow_of_a_signal() -> None:
    with stop_signals(), held_signals():
        signal.raise_signal(signal.SIGTERM)
        wait()


def make_one_of_its_own() -> None:
    with suppress(RuntimeError):
        wait()
    raise ConfigError("eval.metrics.m", "compute() raised RuntimeError: connection closed")


def told(by: list[int], others: Callable[[], None] = wait) -> str:
    """What this rank raises where the ranks `by` make a mistake while the others do something else."""

    @shared_failures()
    def run() -> None:
        if dist.get_rank() in by:
            raise mistake()
        others()

    with pytest.raises(ConfigError) as caught:
        run()
    return str(caught.value)


def told_in_another_group(by: list[int]) -> str:
    group = dist.new_group()
    wait(group)
    return told(by, partial(wait, group))


def told_beside_workers(by: list[int]) -> str:
    wait()
    batches = iter(DataLoader([1, 2], num_workers=1, persistent_workers=True))  # type: ignore[arg-type]
    next(batches)
    text = told(by)
    assert not multiprocessing.active_children()
    return text


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("tell", [told, told_in_another_group, told_beside_workers])
def test_every_rank_raises_it_whatever_group_it_waits_in(tell, world, rank):
    of_others = TOLD.format(f"rank {rank}: ")
    expected = [TOLD.format("") if i == rank else of_others for i in range(world)]
    assert run_distributed(tell, [rank], world=world, timeout=30) == expected


@pytest.mark.parametrize(
    "others", [wait_in_the_shadow_of_a_signal, make_one_of_its_own], ids=lambda function: function.__name__
)
def test_it_takes_the_place_of_what_comes_of_it(others):
    expected = [TOLD.format("rank 1: "), TOLD.format("")]
    assert run_distributed(told, [1], others, timeout=10) == expected


def test_the_same_mistake_is_every_rank_s_own():
    assert run_distributed(told, [0, 1]) == [TOLD.format("")] * 2


def fault() -> None:
    with shared_failures():
        raise ZeroDivisionError


def test_what_is_no_mistake_passes():
    with pytest.raises(RankError, match="ZeroDivisionError"):
        run_distributed(fault)


def go_on_alone() -> None:
    with pytest.raises(ConfigError), shared_failures():
        raise mistake()
    wait()


def test_a_process_alone_keeps_its_group():
    run_distributed(go_on_alone, world=1)
