"""Saved by some ranks under one strategy, continued by others under another: the same training."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from distopt import Runner, comm, load_config
from distopt.data.loader import Step
from tests.kit import run_distributed
from tests.kit.distributed import RankError
from tests.runs import CONFIG, STEPS, losses, rows, train, whole, write_config

AT = 7
"""The step in between: in the second epoch of five steps, the last of which is smaller."""
BATCH_SIZE, MICRO_BATCH_SIZE = 16, 2
SIDES = [
    (1, "single"),
    *[(1, "ddp"), (1, "fsdp")],
    *[(2, "ddp"), (2, "fsdp"), (2, "hsdp")],
    *[(4, "ddp"), (4, "fsdp"), (4, "hsdp")],
]


class Cell(NamedTuple):
    """From how many ranks under what, to how many under what."""

    saved_by: int
    saved_under: str
    continued_by: int
    continued_under: str

    def __str__(self) -> str:
        return "{1}{0}-{3}{2}".format(*self)


CELLS = [Cell(*before, *after) for before, after in product(SIDES, SIDES)]
PART = [
    Cell(1, "single", 4, "hsdp"),
    Cell(4, "hsdp", 2, "ddp"),
    Cell(2, "ddp", 4, "fsdp"),
    Cell(4, "fsdp", 1, "single"),
]
"""From each strategy and to each; all others are a system test."""


class Trained(NamedTuple):
    """What came of a start."""

    parameters: dict[str, torch.Tensor]
    samples: dict[int, list[int]]
    """Step → all that it was taken on, sorted."""
    accumulation: int


class NotingRunner(Runner):
    """Notes which samples each step is taken on."""

    def _assemble(self) -> None:
        super()._assemble()
        self.samples: dict[int, list[int]] = {}
        self.steps = map(self._note, self.steps)

    def _note(self, step: Step) -> Step:
        own = [i for micro in step.micro_batches for i in list(micro.ids)[: micro.samples]]
        self.samples[self.step + 1] = sorted(i for ids in comm.gather(own) for i in ids)
        return step


def _train(path: Path) -> Trained:
    runner = NotingRunner(load_config(path))
    runner.train()
    return Trained(whole(runner.model), runner.samples, runner.prepared.layout.accumulation)


def _run(folder: Path, world: int, strategy: str, max_steps: int = STEPS) -> Trained:
    options: dict[str, Any] = {"type": strategy}
    if strategy == "hsdp":
        options["shard_size"] = max(1, world // 2)
    path = write_config(
        folder,
        strategy=options,
        max_steps=max_steps,
        data={
            "train": {"type": "tests.components:Windows", "length": 70},
            "val": CONFIG["data"]["val"],
            "batch_size": BATCH_SIZE,
            "micro_batch_size": MICRO_BATCH_SIZE,
        },
        # Larger than rounding makes the gradients that are 0 by nature, such as those of the keys' biases.
        optimizer={**CONFIG["optimizer"], "eps": 1e-4},
        eval={"every": 100},
    )
    return run_distributed(_train, path, world=world)[0]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> tuple[Path, Trained]:
    """A run by one process, and what came of it."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    return folder / "run", _run(folder, 1, "single")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Callable[[int, str], tuple[Path, Trained]]:
    """A world and a strategy → a run that they took to the step in between; each is made once."""
    made: dict[tuple[int, str], tuple[Path, Trained]] = {}

    def make(world: int, strategy: str) -> tuple[Path, Trained]:
        if (world, strategy) not in made:
            folder = tmp_path_factory.mktemp(f"{strategy}{world}")
            made[world, strategy] = folder / "run", _run(folder, world, strategy, max_steps=AT)
        return made[world, strategy]

    return make


def _check(cell: Cell, uninterrupted: tuple[Path, Trained], saved: Any, folder: Path) -> None:
    (whole_run, expected), (run, before) = uninterrupted, saved(cell.saved_by, cell.saved_under)
    shutil.copytree(run, folder / "run")
    after = _run(folder, cell.continued_by, cell.continued_under)
    for trained, world in ((before, cell.saved_by), (after, cell.continued_by)):
        assert trained.accumulation == BATCH_SIZE // (world * MICRO_BATCH_SIZE)
    assert list(after.samples) == list(range(AT + 1, STEPS + 1))
    assert {**before.samples, **after.samples} == expected.samples
    assert [row["step"] for row in rows(folder / "run")] == list(range(1, STEPS + 1))
    assert losses(folder / "run") == pytest.approx(losses(whole_run), rel=1e-5)
    for name, value in expected.parameters.items():
        torch.testing.assert_close(after.parameters[name], value, rtol=1e-4, atol=1e-5)


def test_each_sample_is_trained_on_once_in_an_epoch(uninterrupted):
    _, trained = uninterrupted
    assert [len(trained.samples[step]) for step in range(1, 11)] == 2 * [16, 16, 16, 16, 6]
    for epoch in (range(1, 6), range(6, 11)):
        assert sorted(i for step in epoch for i in trained.samples[step]) == list(range(70))


@pytest.mark.slow
@pytest.mark.parametrize("cell", PART, ids=str)
def test_another_world_or_strategy_continues_the_same_training(cell, uninterrupted, saved, tmp_path):
    _check(cell, uninterrupted, saved, tmp_path)


@pytest.mark.system
@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell not in PART], ids=str)
def test_every_world_and_strategy_continues_the_same_training(cell, uninterrupted, saved, tmp_path):
    _check(cell, uninterrupted, saved, tmp_path)


def test_a_world_that_does_not_divide_the_batch_is_refused_and_nothing_written(tmp_path):
    path = write_config(tmp_path)
    run_distributed(train, path)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*")}
    with pytest.raises(RankError, match=r"data\.batch_size: cannot be divided over 3 ranks"):
        run_distributed(train, path, "max_steps=13", world=3)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*")} == before
