"""Ranks that torchrun restarts, and a node that is lost: training goes on from the last checkpoint."""

from __future__ import annotations

import random
import signal
import socket
from pathlib import Path

import pytest

from distopt.checkpoint import directory
from tests.faults.soak import STEPS, Start, compare, poll, run_to_end, soak_config
from tests.runs import CONFIG, losses, rows, status

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

CHANCE = random.Random(0)
WITHOUT_DROPOUT = {"model": CONFIG["model"]}
"""Whose random state belongs to a rank: another number of ranks draws otherwise."""


def wait_for_checkpoint(run: Path, after: int = 0) -> None:
    poll(lambda: directory.committed(run)[-1:] > [directory.step_directory(run, after)])


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_rank_that_dies_is_restarted_and_the_run_ends_bitwise_as_one_that_was_not(tmp_path, strategy):
    whole = soak_config(tmp_path / "whole", strategy)
    run_to_end(whole)
    config = soak_config(tmp_path, strategy)
    with Start(config, "--standalone", "--max-restarts=3") as start:
        for kills, step in enumerate((0, 10, 20)):
            wait_for_checkpoint(tmp_path / "run", after=step)
            poll(lambda kills=kills: status(tmp_path / "run")["restarts"] == kills)
            assert start.kill("rank", CHANCE)
            poll(lambda: len(start.ranks()) < 2)
        assert start.wait() == 0, start.output.read_text()
    assert status(tmp_path / "run")["restarts"] == 3
    assert compare(tmp_path / "run", whole.with_name("run")) == []


def test_a_lost_node_leaves_the_run_to_the_other(tmp_path):
    """Two torchruns of one rank each; the one that does not hold the rendezvous is killed."""
    whole = soak_config(tmp_path / "whole", "ddp", **WITHOUT_DROPOUT)
    run_to_end(whole)
    config = soak_config(tmp_path, "ddp", **WITHOUT_DROPOUT)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    options = [
        "--nnodes=1:2",
        "--max-restarts=3",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint=127.0.0.1:{port}",
        "--rdzv-id=elastic",
        "--rdzv-conf=last_call_timeout=30,keep_alive_interval=1,keep_alive_max_attempt=6",
    ]
    with Start(config, *options, nproc=1) as first:
        poll(lambda: _listens(port))
        with Start(config, *options, nproc=1) as second:
            wait_for_checkpoint(tmp_path / "run", after=10)
            assert directory.read_progress(directory.committed(tmp_path / "run")[0]).world_size == 2
            assert second.kill("torchrun", CHANCE)
            assert second.wait() == -signal.SIGKILL
        assert first.wait(200) == 0, first.output.read_text()
    run = tmp_path / "run"
    assert status(run)["state"] == "done"
    assert directory.read_progress(directory.newest(run)).world_size == 1
    assert [row["step"] for row in rows(run)] == list(range(1, STEPS + 1))
    assert losses(run) == pytest.approx(losses(whole.with_name("run")), rel=1e-3)


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
