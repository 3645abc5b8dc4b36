"""A run that is told to stop, and started again, is bitwise the one that was not."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from distopt import Runner, interruption, load_config
from distopt.checkpoint import directory
from distopt.faults import stop_signals
from tests.kit import run_distributed
from tests.runs import CONFIG, STEPS, losses, rows, status, train, whole, write_config


def _start(path: Path) -> dict[str, torch.Tensor]:
    runner = Runner(load_config(path))
    with pytest.MonkeyPatch.context() as patch, stop_signals():
        patch.setattr(interruption, "PACE", 0.0)  # a second is longer than these runs
        runner.train()
    return whole(runner.model)


def _changes(strategy: str) -> dict:
    model = {**CONFIG["model"], "dropout": 0.1}
    return {"strategy": strategy, "deterministic": True, "model": model, "checkpoint": {"every": None}}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize(
    "callback",
    [
        {"step": 3},
        {"step": 7, "rank": 0, "number": int(signal.SIGUSR1)},
        {"step": 5, "evaluating": True},
        {"step": STEPS, "evaluating": True},
    ],
    ids=["step", "usr1", "evaluation", "last-evaluation"],
)
def test_a_preempted_run_goes_on_as_if_nothing_had_been(tmp_path, strategy, callback):
    path = write_config(
        tmp_path, callbacks=[{"type": "tests.components:SignalAt", **callback}], **_changes(strategy)
    )
    run_distributed(_start, path)
    found = status(tmp_path / "run")
    assert found["state"] == "preempted"
    assert found["checkpoint"] == f"checkpoints/step_{found['step']:08d}"
    assert callback["step"] <= found["step"] <= callback["step"] + 2  # all ranks know a step later

    path = write_config(tmp_path, **_changes(strategy))
    continued = run_distributed(_start, path)[0]
    assert status(tmp_path / "run")["state"] == "done"
    (tmp_path / "whole").mkdir()
    expected = run_distributed(train, write_config(tmp_path / "whole", **_changes(strategy)))[0]
    assert all(torch.equal(continued[name], value) for name, value in expected.items())
    assert losses(tmp_path / "run") == losses(tmp_path / "whole" / "run")
    assert rows(tmp_path / "run", "eval") == rows(tmp_path / "whole" / "run", "eval")


def test_a_time_limit_ends_a_start_and_the_next_goes_on(tmp_path):
    path = write_config(tmp_path, max_time=1e-6, checkpoint={"every": None}, eval=None)
    for _ in range(STEPS):  # a step or two each
        run_distributed(_start, path)
        found = status(tmp_path / "run")
        if found["state"] == "done":
            break
        assert found["state"] == "preempted"
        assert found["reason"].startswith("the time limit of ")
    assert found["state"] == "done"
    assert [row["step"] for row in rows(tmp_path / "run")] == list(range(1, STEPS + 1))
    assert len(directory.committed(tmp_path / "run")) == 3
