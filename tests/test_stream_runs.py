"""Whole runs on a stream: the same training on any world, and a resume in the middle of a pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distopt import ConfigError
from tests.kit import run_distributed
from tests.runs import losses, rows, train, train_alone, write_config


def config(folder: Path, **changes: Any) -> Path:
    """70 samples in batches of 16: five steps a pass."""
    data = {"type": "tests.components:PointStream"}
    return write_config(
        folder,
        **{
            "model": {"type": "tests.components:Classifier"},
            "loss": {"type": "CrossEntropyLoss"},
            "data": {"train": data, "val": data, "batch_size": 16, "micro_batch_size": 2},
            "optimizer": {"type": "SGD", "lr": 0.1},
            "param_scheduler": None,
            "checkpoint": {"every": 20},
        }
        | changes,
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    train_alone(config(folder, strategy="single"))
    return folder / "run"


@pytest.mark.parametrize(("strategy", "world"), [("ddp", 2), ("fsdp", 2), ("fsdp", 4)])
def test_the_losses_are_those_of_one_process(tmp_path, alone, strategy, world):
    run_distributed(train, config(tmp_path, strategy=strategy), world=world)
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), rel=1e-4)
    assert [row["epoch"] for row in rows(tmp_path / "run")] == [0] * 5 + [1] * 5 + [2] * 2
    evaluations = [[row["eval"]["loss"] for row in rows(run, "eval")] for run in (tmp_path / "run", alone)]
    assert evaluations[0] == pytest.approx(evaluations[1], rel=1e-4)


@pytest.mark.parametrize("stop", [5, 7])
@pytest.mark.parametrize("world", [2, 4])
def test_a_resume_continues_where_the_pass_stood_on_any_world(tmp_path, alone, stop, world):
    run_distributed(train, config(tmp_path, max_steps=stop))
    run_distributed(train, config(tmp_path), world=world)
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), rel=1e-4)


@pytest.mark.slow
def test_workers_change_nothing(tmp_path, alone):
    path = config(tmp_path, max_steps=7)
    run_distributed(train, path, "data.num_workers=2")
    run_distributed(train, path, "data.num_workers=1", "max_steps=12")
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), rel=1e-4)


def test_epochs_need_a_length(tmp_path):
    with pytest.raises(ConfigError, match=r"max_epochs: the length of data\.train is not known"):
        train_alone(config(tmp_path, max_steps=None, max_epochs=2))
