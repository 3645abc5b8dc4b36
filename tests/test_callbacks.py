"""Callbacks: when they are called, what they may do, what a checkpoint keeps of them."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distopt import ConfigError, Runner, load_config
from distopt.callbacks import Callback, EarlyStop, Run
from tests.components import Recorder, StopOnOneRank
from tests.kit import run_distributed
from tests.runs import CONFIG, rows, status, train_alone, write_config

STILL = {
    "optimizer": {"type": "SGD", "lr": 0.0, "paramwise_cfg": {"bypass_duplicate": True}},
    "param_scheduler": None,
}
"""Nothing improves."""


def train_with(config: Path, *callbacks: Any) -> None:
    Runner(load_config(config), callbacks=callbacks).train()


def test_hooks_are_called_at_the_steps_that_they_name(tmp_path):
    recorder = Recorder()
    train_with(write_config(tmp_path, max_steps=4, log={"every": 3}, eval={"every": 2}), recorder)
    assert recorder.calls == [
        ("start", 0),
        *[("step", 1), ("log", 1)],
        *[("step", 2), ("eval", 2)],
        *[("step", 3), ("log", 3)],
        *[("step", 4), ("log", 4), ("eval", 4), ("save", 4)],
        ("end", 4),
    ]


def test_a_callback_is_named_by_its_import_path_and_what_it_adds_to_a_row_is_recorded(tmp_path):
    train_alone(write_config(tmp_path, callbacks=[{"type": "tests.components:Recorder"}]))
    assert [row["recorder"]["count"] for row in rows(tmp_path / "run")] == list(range(1, 13))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.value for event in events.Scalars("recorder/count")] == list(range(1, 13))


def resume(config: Path, world_before: int) -> tuple[Any, ...]:
    recorder = Recorder()
    train_with(config, recorder)
    return recorder.calls[:3], recorder.count, recorder.weights["seen"].tolist()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_state_comes_back_with_a_checkpoint_numbers_and_tensors(tmp_path, strategy):
    run_distributed(resume, write_config(tmp_path, strategy=strategy, max_steps=5), 2)
    path = write_config(tmp_path, strategy=strategy, max_steps=7)
    for calls, count, seen in run_distributed(resume, path, 2):
        assert calls == [("start", 5), ("load", 5), ("step", 6)]
        assert (count, seen) == (7, [7.0, 7.0])


def test_a_callback_that_is_new_starts_afresh(tmp_path):
    train_alone(write_config(tmp_path, max_steps=5))
    recorder = Recorder()
    train_with(write_config(tmp_path, max_steps=7), recorder)
    assert recorder.count == 2


def test_two_of_one_class_keep_a_state_each(tmp_path):
    train_with(write_config(tmp_path, max_steps=5), Recorder(), Recorder())
    first, second = Recorder(), Recorder()
    first.count = 1000
    train_with(write_config(tmp_path, max_steps=6), first, second)
    assert (first.count, second.count) == (6, 6)


def stop(config: Path, *callbacks: Any) -> int:
    runner = Runner(load_config(config), callbacks=callbacks)
    runner.train()
    return runner.step


def test_one_rank_s_request_to_stop_ends_all_at_the_next_logged_step(tmp_path):
    path = write_config(tmp_path, log={"every": 4}, eval={"every": 20})
    assert run_distributed(stop, path, StopOnOneRank(rank=1, step=5)) == [8, 8]
    assert status(tmp_path / "run")["state"] == "done"
    assert status(tmp_path / "run")["checkpoint"] == "checkpoints/step_00000008"
    assert rows(tmp_path / "run", "eval")[-1]["step"] == 8


def test_early_stop_ends_a_run_that_does_not_improve_with_the_reason_and_for_good(tmp_path, capsys):
    path = write_config(tmp_path, **STILL, eval={"every": 2}, callbacks={"type": "EarlyStop", "patience": 2})
    train_alone(path)
    assert status(tmp_path / "run")["step"] == 6
    assert "loss has not improved on" in status(tmp_path / "run")["reason"]
    assert "stopped" in capsys.readouterr().out
    train_alone(path)
    assert "finished at step 6, nothing to do" in capsys.readouterr().out


def test_early_stop_goes_on_counting_after_a_resume(tmp_path):
    changes = {**STILL, "eval": {"every": 2}, "callbacks": [{"type": "EarlyStop", "patience": 4}]}
    train_alone(write_config(tmp_path, max_steps=6, **changes))
    train_alone(write_config(tmp_path, **changes))
    assert status(tmp_path / "run")["step"] == 10


def test_early_stop_of_a_metric_that_was_never_a_number_says_so():
    run = SimpleNamespace(metrics={"loss": False}, reasons=[])
    run.stop = run.reasons.append
    EarlyStop(patience=1).on_eval(run, {"eval": {"loss": math.nan}})
    assert run.reasons == ["loss was never a number in 1 evaluations"]


def test_early_stop_lets_a_run_that_improves_go_on(tmp_path):
    train_alone(write_config(tmp_path, eval={"every": 2}, callbacks=[{"type": "EarlyStop", "patience": 1}]))
    assert status(tmp_path / "run")["step"] == 12


BAD = {
    "unknown metric": (
        {"metric": "acuracy"},
        "callbacks.0.metric: evaluation produces no such metric",
        "loss",
    ),
    "unknown mode": ({"mode": "least"}, "callbacks.0.mode: wrong value", "min, max"),
    "no patience": ({"patience": 0}, "callbacks.0.patience: wrong value", "1 or more"),
}


@pytest.mark.parametrize(("arguments", "message", "allowed"), BAD.values(), ids=BAD)
def test_what_early_stop_is_given_wrongly_is_said_before_anything_is_written(
    tmp_path, arguments, message, allowed
):
    path = write_config(tmp_path, callbacks=[{"type": "EarlyStop", **arguments}])
    with pytest.raises(ConfigError) as caught:
        train_alone(path)
    assert message in str(caught.value)
    assert allowed in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_early_stop_without_evaluation_is_refused(tmp_path):
    path = write_config(tmp_path, eval=None, callbacks=[{"type": "EarlyStop"}])
    with pytest.raises(ConfigError, match="the config has no `eval`"):
        train_alone(path)


def test_the_best_value_is_kept_over_a_resume_and_recorded(tmp_path):
    train_alone(write_config(tmp_path, max_steps=10))
    worse = {**CONFIG["optimizer"], "lr": 1.0}
    train_alone(write_config(tmp_path, optimizer=worse, param_scheduler=None))
    evaluations = rows(tmp_path / "run", "eval")
    values = [row["eval"]["loss"] for row in evaluations]
    assert values[-1] > values[1]
    assert [row["best"]["loss"] for row in evaluations] == [values[0], values[1], values[1]]


class Lazy(Recorder):
    """Has no state before its first step."""

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() if self.count else {}


def resume_lazily(config: Path) -> tuple[int, list[float]]:
    lazy = Lazy()
    train_with(config, lazy)
    return lazy.count, lazy.weights["seen"].tolist()


def test_a_state_that_is_made_in_the_first_step_comes_back_too(tmp_path):
    run_distributed(resume_lazily, write_config(tmp_path, max_steps=5))
    path = write_config(tmp_path, max_steps=7)
    assert run_distributed(resume_lazily, path) == [(7, [7.0, 7.0])] * 2


class Saving(Callback):
    """Has the state that it is given."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def state_dict(self) -> Any:
        return self.state


@pytest.mark.parametrize(
    ("state", "reason"), [(None, "no mapping"), ([1], "no mapping"), ({1: 2}, "not all text")]
)
def test_a_state_that_cannot_be_saved_is_told_before_the_first_step(tmp_path, state, reason):
    with pytest.raises(ConfigError, match=reason):
        train_with(write_config(tmp_path), Saving(state))
    assert not (tmp_path / "run").exists()


def test_a_state_may_hold_what_is_no_number(tmp_path):
    train_with(write_config(tmp_path, max_steps=1), Saving({"best": float("nan")}))
    assert status(tmp_path / "run")["state"] == "done"


class Noting(Callback):
    """Puts something into each row."""

    def __init__(self, what: Any) -> None:
        self.what = what

    def on_log(self, run: Run, row: dict[str, Any]) -> None:
        row["noted"] = self.what

    def on_eval(self, run: Run, row: dict[str, Any]) -> None:
        row["noted"] = self.what


NOTED = {
    "a tensor": ({"x": torch.tensor(2.5)}, {"x": 2.5}),
    "a tensor by itself": (torch.tensor(3), 3),
    "a tensor of one element": ({"x": torch.tensor([2.5])}, {"x": 2.5}),
    "a NumPy scalar": ({"x": np.float32(0.5), "y": np.int64(3)}, {"x": 0.5, "y": 3}),
    "nothing": ({"x": None}, {"x": None}),
    "what is not finite": ([1.0, float("nan")], [1.0, None]),
    "text": ("a word", "a word"),
}


@pytest.mark.parametrize(("what", "recorded"), NOTED.values(), ids=NOTED)
def test_what_is_a_number_or_plain_is_recorded(tmp_path, what, recorded):
    train_with(write_config(tmp_path, max_steps=1, param_scheduler=None), Noting(what))
    for kind in ("loss", "eval"):
        assert [row["noted"] for row in rows(tmp_path / "run", kind)] == [recorded]


UNRECORDABLE = {
    "several numbers": ({"x": torch.zeros(3)}, "noted.x", "Tensor of shape (3,)"),
    "a complex one": ({"x": torch.tensor(1j)}, "noted.x", "Tensor of shape ()"),
    "text among numbers": ({"x": "a word"}, "noted.x", "str"),
    "an object": (object(), "noted", "object"),
}


@pytest.mark.parametrize(("what", "name", "kind"), UNRECORDABLE.values(), ids=UNRECORDABLE)
def test_what_cannot_be_recorded_is_told_of_its_callback(tmp_path, what, name, kind):
    callbacks = [{"type": "tests.components:Recorder"}]
    with pytest.raises(ConfigError) as caught:
        train_with(write_config(tmp_path, callbacks=callbacks), Noting(what))
    assert f"callbacks.1: puts into a row what is no number: {name}\n  given:    " in str(caught.value)
    assert kind in str(caught.value)
