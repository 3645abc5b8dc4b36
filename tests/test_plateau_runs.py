"""Runs whose lr is lowered where evaluation no longer improves."""

from __future__ import annotations

import pytest

from distopt import ConfigError, Runner, load_config
from tests.kit import run_distributed
from tests.runs import losses, rows, train, write_config

PLATEAU = {"type": "ReduceOnPlateauLR", "by_epoch": False, "monitor": "loss", "factor": 0.5, "patience": 1}
NEVER_ENOUGH = {**PLATEAU, "threshold": 0.9}  # so that no evaluation counts as an improvement


def config(folder, entry, **changes):
    return write_config(folder, param_scheduler=[entry], **{"eval": {"every": 2}, **changes})


def test_lr_falls_where_evaluation_does_not_improve(tmp_path):
    run_distributed(train, config(tmp_path, NEVER_ENOUGH))
    lrs = [row["lr"]["default"] for row in rows(tmp_path / "run")]
    # After steps 2 (the first), 4, 6: lowered; 8, 10: lowered.
    assert lrs == pytest.approx([0.01] * 6 + [0.005] * 4 + [0.0025] * 2)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, strategy):
    whole = config(tmp_path, NEVER_ENOUGH, name="whole.yaml", work_dir=str(tmp_path / "whole"))
    run_distributed(train, whole, f"strategy={strategy}")
    cut = config(tmp_path, NEVER_ENOUGH)
    run_distributed(train, cut, f"strategy={strategy}", "max_steps=8")
    run_distributed(train, cut, f"strategy={strategy}")
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    for ours, theirs in zip(rows(tmp_path / "run"), rows(tmp_path / "whole"), strict=True):
        assert ours["lr"] == theirs["lr"]


def test_a_metric_that_evaluation_does_not_produce_is_told_with_those_it_does(tmp_path):
    path = config(tmp_path, {**PLATEAU, "monitor": "accuracy"})
    with pytest.raises(ConfigError, match=r"monitor: evaluation does not produce this metric") as caught:
        Runner(load_config(path)).train()
    assert "allowed:  loss" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_without_evaluation_there_is_no_metric(tmp_path):
    path = config(tmp_path, PLATEAU, eval=None)
    with pytest.raises(ConfigError, match=r"there is no evaluation"):
        Runner(load_config(path)).train()
