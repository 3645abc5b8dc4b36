"""`launch/local.sh` for real: torchrun and its ranks, and a signal to what was started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.soak import poll
from tests.runs import status, write_config

pytestmark = pytest.mark.system

SCRIPT = Path(__file__).parents[2] / "launch/local.sh"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_script_ends_the_run_with_a_checkpoint(tmp_path, number):
    config = write_config(tmp_path, strategy="single", max_steps=100_000, log={"every": 1})
    run = tmp_path / "run"
    environment = {**os.environ, "PYTHON": sys.executable, "RANKS": "1"}
    process = subprocess.Popen([SCRIPT, config], env=environment, stderr=subprocess.DEVNULL)
    try:
        poll(lambda: (run / "metrics.jsonl").exists() and '"loss"' in (run / "metrics.jsonl").read_text())
        process.send_signal(number)
        process.wait(60)
    finally:
        process.kill()
        process.wait()
    said = status(run)
    assert (said["state"], said["reason"]) == ("preempted", number.name)
    assert (run / said["checkpoint"]).is_dir()
