"""Continuing a run: exactly where it stood, with the config as it is now."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distopt import ConfigError
from distopt.checkpoint import directory
from tests.kit import run_distributed
from tests.runs import CONFIG, STEPS, losses, rows, status, train, train_alone, write_config


def interrupted(folder: Path, at: int, **changes) -> Path:
    """A run that ended at step `at`, with the schedule of the whole."""
    path = write_config(folder, max_steps=at, **changes)
    run_distributed(train, path)
    return write_config(folder, **changes)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_continued_run_is_bitwise_the_uninterrupted_one(tmp_path, strategy):
    """Dropout shows the random state, step 6 of 4 per epoch the place in the data."""
    changes = {"strategy": strategy, "deterministic": True, "model": {**CONFIG["model"], "dropout": 0.1}}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir(), parts.mkdir()
    expected = run_distributed(train, write_config(whole, **changes))[0]
    found = run_distributed(train, interrupted(parts, 6, **changes))[0]
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert losses(parts / "run") == losses(whole / "run")
    assert [row["lr"] for row in rows(parts / "run")] == [row["lr"] for row in rows(whole / "run")]


@pytest.mark.parametrize(("strategy", "world"), [("fsdp", 4), ("fsdp", 1), ("ddp", 4)])
def test_another_world_and_strategy_continue_with_the_same_losses(tmp_path, strategy, world):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir(), parts.mkdir()
    run_distributed(train, write_config(whole, strategy="ddp"))
    path = interrupted(parts, 6, strategy="ddp")
    run_distributed(train, path.rename(parts / "cfg2.yaml"), f"strategy={strategy}", world=world)
    assert losses(parts / "run") == pytest.approx(losses(whole / "run"), rel=1e-4)


def test_rows_and_points_after_the_checkpoint_are_not_doubled(tmp_path):
    path = interrupted(tmp_path, 7, checkpoint={"every": 4})
    newest = directory.newest(tmp_path / "run")
    newest.rename(newest.with_suffix(".partial"))  # as if the run was killed during its last save
    run_distributed(train, path)
    assert [row["step"] for row in rows(tmp_path / "run")] == list(range(1, STEPS + 1))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("lr/norm")] == list(range(1, STEPS + 1))
    assert not list((tmp_path / "run" / "checkpoints").glob("*.partial"))


def test_a_changed_config_takes_effect_at_once_and_is_printed(tmp_path, capsys):
    train_alone(write_config(tmp_path, max_steps=4))
    changed = {
        **CONFIG["optimizer"],
        "lr": 5e-3,
        "paramwise_cfg": {"bypass_duplicate": True, "flat_decay_mult": 0},
    }
    train_alone(write_config(tmp_path, optimizer=changed))
    printed = capsys.readouterr().out
    assert "optimizer.lr: 0.01 → 0.005" in printed
    after = rows(tmp_path / "run")[4]
    assert after["lr"] == pytest.approx({"default": 5e-3, "flat": 5e-3})
    assert after["weight_decay"] == {"default": 0.1, "flat": 0.0}


def test_a_finished_run_says_so_and_touches_nothing(tmp_path, capsys):
    path = write_config(tmp_path, max_steps=2)
    train_alone(path)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*")}
    capsys.readouterr()
    train_alone(path)
    assert "finished at step 2, nothing to do" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*")} == before


def test_a_longer_horizon_continues_a_finished_run(tmp_path):
    train_alone(write_config(tmp_path, max_steps=2))
    train_alone(write_config(tmp_path, max_steps=3))
    assert status(tmp_path / "run")["step"] == 3
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2, 3]


def test_never_refuses_a_run_directory_in_use(tmp_path):
    path = write_config(tmp_path, max_steps=2)
    train_alone(path)
    with pytest.raises(ConfigError, match=r"resume: .* is not empty"):
        train_alone(path, "resume=never")


def test_a_path_starts_another_run_from_a_checkpoint(tmp_path):
    train_alone(write_config(tmp_path, max_steps=4))
    path = directory.newest(tmp_path / "run")
    train_alone(write_config(tmp_path), f"resume={path}", f"work_dir={tmp_path / 'other'}")
    assert [row["step"] for row in rows(tmp_path / "other")] == list(range(5, STEPS + 1))
