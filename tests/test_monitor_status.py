"""status.json: always whole, always current, never in training's way."""

from __future__ import annotations

import json
import logging
import os
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from distopt.errors import ConfigError
from distopt.monitor import StatusFile, read_status

NEVER = 3600.0
"""A heartbeat that does not come within a test."""


def test_it_says_who_runs_since_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "4711.0")
    path = tmp_path / "status.json"
    with StatusFile(path, step=200, checkpoint="checkpoints/step_00000200", last_step=600):
        status = read_status(path)
    assert status is not None
    updated = datetime.fromisoformat(status.pop("updated"))
    assert abs(datetime.now(UTC) - updated) < timedelta(minutes=1)
    assert status == {
        "state": "running",
        "step": 200,
        "last_step": 600,
        "checkpoint": "checkpoints/step_00000200",
        "reason": None,
        "launch": "4711.0",
        "restarts": 2,
        "restarts_left": 1,
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }


def test_a_new_checkpoint_is_written_at_once(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    with StatusFile(path, step=0, heartbeat=NEVER) as status:
        status.update(step=200, checkpoint="checkpoints/step_00000200")
        written = read_status(path)
    assert written is not None
    assert (written["step"], written["checkpoint"]) == (200, "checkpoints/step_00000200")


def test_a_step_alone_touches_no_file(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    with StatusFile(path, step=0, heartbeat=NEVER) as status:
        before = path.stat().st_ino, path.stat().st_mtime_ns
        status.update(step=10)
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == before


def test_the_heartbeat_brings_the_step(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    with StatusFile(path, step=0, heartbeat=0.001) as status:
        status.update(step=10)
        while (read_status(path) or {})["step"] == 0:  # the test's time limit ends a heart that does not beat
            pass
        assert (read_status(path) or {})["step"] == 10


def test_a_reader_always_finds_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    with StatusFile(path, step=0, heartbeat=0.0001) as status:
        for step in range(500):
            status.update(step=step, checkpoint=f"checkpoints/step_{step:08}" if step % 10 == 0 else None)
            assert json.loads(path.read_text())["state"] == "running"


def test_the_last_word_stays(tmp_path: Path) -> None:
    with StatusFile(tmp_path / "status.json", step=0) as status:
        status.update(state="failed", step=7, reason="SIGTERM")
    last = read_status(tmp_path / "status.json")
    assert last is not None
    assert (last["state"], last["step"], last["reason"]) == ("failed", 7, "SIGTERM")


def test_an_exception_that_passes_makes_the_run_failed(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError), StatusFile(tmp_path / "status.json", step=0):
        raise FloatingPointError("loss is nan")
    last = read_status(tmp_path / "status.json")
    assert last is not None
    assert (last["state"], last["reason"]) == ("failed", "FloatingPointError: loss is nan")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (RuntimeError("in a worker\nTraceback:\n  OSError: disk\n\n"), "RuntimeError: OSError: disk"),
        (ConfigError("model.heads", "does not divide", given=3), "ConfigError: model.heads: does not divide"),
    ],
)
def test_the_reason_is_one_line(tmp_path: Path, error: BaseException, reason: str) -> None:
    with pytest.raises(type(error)), StatusFile(tmp_path / "status.json", step=0):
        raise error
    assert (read_status(tmp_path / "status.json") or {})["reason"] == reason


def test_a_full_disk_is_reported_once_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "status.json"
    with caplog.at_level(logging.WARNING), StatusFile(path, step=0, heartbeat=NEVER) as status:
        (tmp_path / "status.json.tmp").symlink_to("/dev/full")
        status.update(checkpoint="one")
        status.update(checkpoint="two")
    assert caplog.text.count("No space left on device") == 1
    assert (read_status(path) or {})["checkpoint"] is None


@pytest.mark.parametrize("content", [None, "", '{"state": "run', "[]"])
def test_what_cannot_be_read_is_none(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "status.json").write_text(content)
    assert read_status(tmp_path / "status.json") is None
