"""The checkpoint of the best value of a metric, and what is said of the time that checkpoints take."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from distopt import ConfigError
from distopt.checkpoint import directory
from distopt.checkpoint.resume import find_start
from distopt.cli import main
from distopt.saving import late_for_torchrun
from tests.runs import status, train_alone, write_config


class Passing(nn.Module):
    """Goes down by the learning rate with each step, and past the best value of its evaluation, 0.5."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, windows: Tensor) -> Tensor:
        return self.scale * 1.0 if self.training else (self.scale - 0.5).abs()


def passing_run(folder: Path, **changes) -> Path:
    """Best after 5 of 12 steps."""
    return write_config(
        folder,
        model={"type": "tests.test_best_checkpoint:Passing"},
        optimizer={"type": "SGD", "lr": 0.1},
        param_scheduler=[],
        clip_grad=None,
        **{"eval": {"every": 1}, "checkpoint": {"best": "loss", "keep_last": 1}} | changes,
    )


def test_the_best_is_saved_when_it_is_evaluated_and_kept_beside_the_last(tmp_path):
    train_alone(passing_run(tmp_path))
    assert [path.name for path in directory.committed(tmp_path / "run")] == ["step_00000005", "step_00000012"]
    best = directory.followed(tmp_path / "run" / "checkpoints" / "best")
    assert best.name == "step_00000005"


def test_a_resume_knows_the_best_of_before(tmp_path):
    path = passing_run(tmp_path)
    train_alone(path, "max_steps=7")
    train_alone(path)
    assert [path.name for path in directory.committed(tmp_path / "run")] == ["step_00000005", "step_00000012"]


def test_best_is_a_name_for_a_checkpoint_in_commands_and_in_resume(tmp_path, capsys):
    train_alone(passing_run(tmp_path))
    best = str(tmp_path / "run" / "checkpoints" / "best")
    assert find_start(tmp_path / "other", best, {}).step == 5
    assert main(["export", best, str(tmp_path / "best.safetensors")]) == 0
    assert "step_00000005" in capsys.readouterr().out
    assert main(["checkpoints", str(tmp_path / "run")]) == 0
    first, last = capsys.readouterr().out.splitlines()[1:]
    assert first.endswith("good, best")
    assert last.endswith("good")


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [({"checkpoint": {"best": "los"}}, "loss"), ({"eval": None, "data.val": None}, "eval.every")],
)
def test_a_metric_that_is_none_is_refused(tmp_path, changes, allowed):
    changes.pop("data.val", None)
    with pytest.raises(ConfigError) as caught:
        train_alone(passing_run(tmp_path, **changes))
    assert (caught.value.key, caught.value.allowed) == ("checkpoint.best", allowed)
    assert not (tmp_path / "run").exists()


def test_how_long_a_checkpoint_took_is_on_record_for_the_next_start(tmp_path):
    train_alone(passing_run(tmp_path))
    assert status(tmp_path / "run")["save_seconds"] > 0
    start = find_start(tmp_path / "run", "auto", {})
    assert start.save_seconds == status(tmp_path / "run")["save_seconds"]


@pytest.mark.parametrize(("timeout", "warns"), [(None, True), ("60", False)])
def test_a_checkpoint_that_takes_longer_than_torchrun_waits_is_warned_of(monkeypatch, timeout, warns):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.delenv("PET_SHUTDOWN_TIMEOUT", raising=False)
    if timeout:
        monkeypatch.setenv("PET_SHUTDOWN_TIMEOUT", timeout)
    text = late_for_torchrun(40.0)
    assert (text is not None) == warns
    assert text is None or "took 40 s to be written" in text
    assert late_for_torchrun(20.0) is None


def test_without_torchrun_nobody_kills(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert late_for_torchrun(1000.0) is None
