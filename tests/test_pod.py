"""What a node on Kubernetes ends with, which decides how its job goes on."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from distopt.callbacks import Callback, Run
from distopt.errors import LOST
from distopt.launch.pod import AGAIN, DONE, STOP, _children, _verdict
from tests.faults.soak import poll
from tests.runs import rows, status, write_config

pytestmark = pytest.mark.timeout(300)


def said(state: str, reason: str | None = None) -> dict[str, Any]:
    return {"state": state, "reason": reason, "launch": "none", "updated": "now"}


@pytest.mark.parametrize(
    ("ended", "after", "now", "verdict"),
    [
        (0, 10, said("done"), DONE),
        (0, 0, said("preempted"), AGAIN),
        (1, 0, said("running"), AGAIN),  # rank 0 was killed
        (1, 0, said("failed", f"rank 3 failed first: {LOST}"), AGAIN),
        (1, 10, said("failed", "ZeroDivisionError"), AGAIN),
        (1, 0, said("failed", "ZeroDivisionError"), STOP),
        (1, 10, said("done"), AGAIN),  # a rank died after the last word
        (1, 0, None, STOP),
    ],
)
def test_the_first_node_ends_by_status_and_progress(ended, after, now, verdict):
    assert _verdict(ended, 0, after, now, last=None) == verdict


def test_what_an_earlier_start_has_said_does_not_count(capsys):
    last = said("preempted")
    assert _verdict(1, 10, 10, dict(last), last=last) == STOP
    assert "it ended before the training began" in capsys.readouterr().err


def test_a_pod_that_was_stopped_before_the_training_began_starts_again():
    assert _verdict(1, 0, 0, None, last=None, stopped=True) == AGAIN


class CrashOfTheOther(Callback):
    """The first rank of the second node fails."""

    def on_step(self, run: Run) -> None:
        if run.step == 2 and os.environ["RANK"] == "1":
            raise ZeroDivisionError("as ever")


@pytest.fixture
def node() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a pod's process, as its manifest does, with the network of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    started = []

    def start(config: Path, rank: int, nodes: int = 1) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            "PET_NNODES": str(nodes),
            "PET_NPROC_PER_NODE": "1",
            "PET_NODE_RANK": str(rank),
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": str(port),
            "PET_LOCAL_ADDR": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "distopt.launch.pod", str(config)]
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, err = process.communicate(timeout=200)
    return process.returncode, err


def test_a_mistake_in_the_config_ends_with_2(node, tmp_path):
    config = write_config(tmp_path, optimizer={"type": "AdamW", "lr": -1})
    status, err = end(node(config, 0))
    assert status == 2
    assert "optimizer.lr" in err


@pytest.mark.system
def test_two_nodes_are_stopped_by_the_signal_to_one_and_continue_to_the_end(node, tmp_path):
    config = write_config(tmp_path, max_steps=2000, log={"every": 1})
    nodes = [node(config, rank, 2) for rank in (0, 1)]
    poll(lambda: (tmp_path / "run/metrics.jsonl").exists() and rows(tmp_path / "run"))
    nodes[1].send_signal(signal.SIGTERM)
    assert [end(process)[0] for process in nodes] == [AGAIN, AGAIN]
    stopped = status(tmp_path / "run")
    assert stopped["state"] == "preempted"
    write_config(tmp_path, max_steps=stopped["step"] + 4, log={"every": 1})
    assert [end(process)[0] for process in [node(config, rank, 2) for rank in (0, 1)]] == [DONE, DONE]
    steps = [row["step"] for row in rows(tmp_path / "run")]
    assert steps == list(range(1, stopped["step"] + 5))
    again = node(config, 1, 2)  # a pod that comes back waits for nobody
    assert end(again)[0] == DONE


def has_torchrun(process: subprocess.Popen[str]) -> bool:
    for child in _children(process.pid):
        with suppress(OSError):  # gone meanwhile
            if b"torch.distributed.run" in Path(f"/proc/{child}/cmdline").read_bytes():
                return True
    return False


@pytest.mark.system
def test_a_signal_before_the_ranks_exist_ends_with_75(node, tmp_path):
    process = node(write_config(tmp_path), 0, 2)  # it waits for the other node
    poll(lambda: has_torchrun(process))
    process.send_signal(signal.SIGTERM)
    assert end(process)[0] == AGAIN


@pytest.mark.system
def test_of_a_crash_on_two_nodes_the_first_speaks_before_the_other_ends(node, tmp_path):
    config = write_config(tmp_path, callbacks=[{"type": "tests.test_pod:CrashOfTheOther"}])
    first, other = (node(config, rank, 2) for rank in (0, 1))
    assert end(first)[0] == STOP
    assert other.poll() is None, "JobSet would start all again, by the other's 75"
    other.send_signal(signal.SIGTERM)  # as Kubernetes does where a job is over
    assert end(other)[0] == AGAIN


@pytest.mark.system
def test_a_crash_without_progress_ends_with_1_and_says_why(node, tmp_path):
    config = write_config(tmp_path, callbacks=[{"type": "tests.system.test_slurm:Crash", "step": 2}])
    status, err = end(node(config, 0))
    assert status == STOP
    assert "not started again: this start came to no new checkpoint after step 0" in err
    assert "ZeroDivisionError: as ever" in err
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "failed"
