"""What a real run keeps of its surroundings, its schedule and its hyperparameters."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distopt import interruption
from distopt.callbacks import Callback, Run
from distopt.faults import stop_signals
from tests.kit import run_distributed
from tests.runs import STEPS, rows, train, train_alone, write_config
from tests.test_monitor_hparams import page


class Breaks(Callback):
    """At the first step."""

    def on_step(self, run: Run) -> None:
        raise RuntimeError("broken")


def _break_off(path: Path, how: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as patch, suppress(RuntimeError), stop_signals():
        patch.setattr(interruption, "PACE", 0.0)  # a second is longer than these runs
        train(path, f"callbacks={json.dumps([how])}")


def texts(run: Path, tag: str) -> dict[int, str]:
    events = EventAccumulator(str(run / "tensorboard")).Reload().Tensors(tag)
    return {event.step: event.tensor_proto.string_val[0].decode() for event in events}


def test_a_run_keeps_what_it_trained_in(tmp_path):
    run_distributed(train, write_config(tmp_path, max_steps=2))
    found = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert [(host["ranks"], host["devices"]) for host in found["hosts"]] == [([0, 1], ["cpu", "cpu"])]
    assert found["versions"]["torch"] == torch.__version__
    assert f"torch {torch.__version__}" in texts(tmp_path / "run", "run/environment")[0]


def test_a_resume_foresees_the_same_schedule_and_neither_start_is_changed_by_that(tmp_path):
    (tmp_path / "whole").mkdir()
    train_alone(write_config(tmp_path / "whole"))
    train_alone(write_config(tmp_path, max_steps=4))
    train_alone(write_config(tmp_path))
    first, second = texts(tmp_path / "run", "run/schedule").values()
    [whole] = texts(tmp_path / "whole" / "run", "run/schedule").values()
    assert first != whole  # whose end is another
    assert second == whole
    lr = {row["step"]: row["lr"]["norm"] for row in rows(tmp_path / "whole" / "run")}
    assert f"{lr[1]:.4g}" in whole
    assert f"{lr[STEPS]:.4g}" in whole


@pytest.mark.parametrize(
    ("how", "status"),
    [
        ({"type": "tests.test_run_texts:Breaks"}, "FAILURE"),
        ({"type": "tests.components:SignalAt", "step": 2, "rank": 0}, "UNKNOWN"),
    ],
    ids=["failed", "preempted"],
)
def test_a_run_that_was_taken_up_again_is_one_session_that_succeeded(tmp_path, how, status):
    path = write_config(tmp_path)
    run_distributed(_break_off, path, how, world=1)
    before = page(tmp_path / "run")
    train_alone(path, "optimizer.lr=0.5")
    after = page(tmp_path / "run")
    assert before["tensorboard"].status == status
    assert before["tensorboard"].hparams["optimizer.lr"] == 0.01
    assert after.keys() == {"tensorboard"}
    assert after["tensorboard"].status == "SUCCESS"
    assert after["tensorboard"].hparams["optimizer.lr"] == 0.5
