"""The end of a run: what it leaves behind in the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.runs import write_config

_THREADS_AFTER_A_RUN = """\
import sys
from pathlib import Path
from distopt import Runner, load_config
runner = Runner(load_config(sys.argv[1], sys.argv[2:]))
runner.train()
print(*(thread.read_text().strip() for thread in Path("/proc/self/task").glob("*/comm")))
"""


@pytest.mark.slow
def test_the_threads_of_the_process_group_end_with_a_run_under_ddp(tmp_path):
    # Threads that outlive it are joined later, with the GIL held, for which they may wait: a deadlock.
    config = write_config(tmp_path, max_steps=2, param_scheduler=[])
    run = subprocess.run(
        [sys.executable, "-c", _THREADS_AFTER_A_RUN, str(config), "strategy=ddp"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "gloo" not in run.stdout.splitlines()[-1]
