"""Event files of a process that was killed: TensorBoard reads them, and a resume goes on with the curves."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

from distopt.monitor.tensorboard import TensorBoard
from tests.kit import run_distributed
from tests.kit.distributed import RankError
from tests.test_monitor_tensorboard import record, row

SAVED, KILLED, LAST = 5, 8, 12


def _log_and_be_killed(directory: Path) -> None:
    writer = TensorBoard(directory, 0)
    for step in range(1, KILLED + 1):
        writer.log(row(step))
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """Its event file."""
    with pytest.raises(RankError):
        run_distributed(_log_and_be_killed, tmp_path, world=1)
    [file] = tmp_path.iterdir()
    return file


def curve(directory: Path, tag: str) -> list[int]:
    multiplexer = EventMultiplexer().AddRun(str(directory), "run").Reload()
    return [point.step for point in multiplexer.Tensors("run", tag)]


@pytest.mark.parametrize("torn", [0, 7, 13], ids="{} bytes of a record".format)
def test_a_resume_after_a_kill_continues_the_curves_without_a_step_twice(killed: Path, torn: int) -> None:
    """A record that was not written whole ends the file, and hides none of the next one's."""
    written = killed.read_bytes()
    killed.write_bytes(written + written[:torn])
    assert curve(killed.parent, "lr/norm") == list(range(1, KILLED + 1))
    record(killed.parent, SAVED, LAST, loss=2.0)
    for tag in ("lr/norm", "wd/norm", "loss/train", "perf/step_time"):
        assert curve(killed.parent, tag) == list(range(1, LAST + 1))
