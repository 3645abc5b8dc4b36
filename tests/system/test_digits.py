"""The handwritten digits as a user trains them: real torchrun, two ranks, the whole length."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit import run_torchrun
from tests.runs import rows, status

DIGITS = str(Path(__file__).parents[2] / "configs" / "digits.yaml")

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


def test_a_small_conv_net_reads_handwritten_digits(tmp_path):
    run = tmp_path / "run"

    done = run_torchrun([DIGITS, f"work_dir={run}"], timeout=280)

    assert done.returncode == 0, done.stdout + done.stderr
    last = rows(run, "eval")[-1]
    assert last["step"] == 345
    assert last["eval"]["accuracy"] > 0.97
    assert status(run)["state"] == "done"
