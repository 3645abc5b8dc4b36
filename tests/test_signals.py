"""A run that is told to stop: what it says, and what its status holds."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.runs import status, write_config

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_with_one_line_and_a_status(tmp_path, number):
    path = write_config(tmp_path, max_steps=1_000_000, checkpoint={"every": 5})
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "distopt.train", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stdout:
            if line.startswith("step") and "10/" in line:
                break
        process.send_signal(number)
        _, said = process.communicate()
    assert process.returncode == 128 + number
    assert said.startswith(
        f"stopped by {number.name}: the same command continues from {tmp_path}/run/checkpoints/"
    )
    assert said.count("\n") == 1
    assert status(tmp_path / "run")["state"] == "failed"
    assert status(tmp_path / "run")["reason"] == f"Stopped: {number.name}"
    assert status(tmp_path / "run")["step"] >= 10
