"""`launch/multinode.sh` on two nodes: network namespaces, which do not reach each other's loopback."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from distopt.checkpoint import directory
from tests.faults.soak import poll
from tests.runs import rows, status

pytestmark = [pytest.mark.system, pytest.mark.timeout(200)]

ROOT = Path(__file__).parents[2]
HEAD, OTHER = "10.77.0.2", "10.77.0.10"
"""As texts the second comes first: by that torchrun orders nodes."""
STEPS = 80


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def nodes() -> Iterator[dict[str, str]]:
    """Address → namespace of two nodes that a cable connects."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("needs root and iproute2")
    names = {HEAD: f"head-{os.getpid()}", OTHER: f"other-{os.getpid()}"}
    try:
        for name in names.values():
            ip("netns", "add", name)
        first, second = names.values()
        ip("-n", first, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", second)
    except subprocess.CalledProcessError as error:
        _remove(names.values())
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    for address, name in names.items():
        ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        ip("-n", name, "link", "set", "lo", "up")
    yield names
    _remove(names.values())


def _remove(names: object) -> None:
    for name in names:  # type: ignore[attr-defined]
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def start(namespace: str, output: Path, run: Path, nnodes: str) -> subprocess.Popen[bytes]:
    """The same command on each node; the process becomes torchrun."""
    environment = {
        **os.environ,
        "HEAD": HEAD,
        "NNODES": nnodes,
        "RANKS": "1",
        "PYTHON": sys.executable,
        "RDZV_CONF": "last_call_timeout=15,keep_alive_interval=1,keep_alive_max_attempt=6",
    }
    overrides = [f"work_dir={run}", f"max_steps={STEPS}", "checkpoint.every=10", "eval=null", "log.every=1"]
    script = [str(ROOT / "launch/multinode.sh"), "configs/quickstart.yaml", *overrides]
    with output.open("wb") as out:
        command = ["ip", "netns", "exec", namespace, *script]
        return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)


def test_of_two_nodes_one_is_lost_and_the_other_goes_on_to_the_end(nodes, tmp_path):
    run = tmp_path / "run"
    outputs = {address: tmp_path / address for address in nodes}
    started = {address: start(nodes[address], outputs[address], run, "1:2") for address in nodes}
    try:
        poll(lambda: directory.committed(run))
        assert directory.read_progress(directory.committed(run)[0]).world_size == 2
        # Rank 0 speaks, and is not where the rendezvous is: the lost node is the one that writes status.json.
        assert "step  1/" in outputs[OTHER].read_text()
        assert "step  1/" not in outputs[HEAD].read_text()
        started[OTHER].send_signal(signal.SIGKILL)
        assert started[HEAD].wait(120) == 0, outputs[HEAD].read_text()
    finally:
        for process in started.values():
            process.kill()
            process.wait()
    assert status(run)["state"] == "done"
    assert directory.read_progress(directory.newest(run)).world_size == 1
    assert [row["step"] for row in rows(run)] == list(range(1, STEPS + 1))


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "usage: HEAD=address NNODES=number"),
        ({"HEAD": "127.0.0.1", "NNODES": "2"}, "HEAD: 127.0.0.1 is 127.0.0.1 on this node"),
        ({"HEAD": "192.0.2.1", "NNODES": "1:3"}, "cannot be divided over 3 ranks"),
        ({"HEAD": "192.0.2.1", "NNODES": "four"}, "NNODES: four is no number of nodes"),
        ({"HEAD": "192.0.2.1", "NNODES": "4:2"}, "NNODES: 4:2 is no number of nodes"),
        ({"HEAD": "nowhere.invalid", "NNODES": "2"}, "HEAD: nowhere.invalid: "),
    ],
)
def test_a_mistake_is_said_before_torchrun_starts(variables, message, tmp_path):
    script = [str(ROOT / "launch/multinode.sh"), *(["configs/quickstart.yaml"] if variables else [])]
    environment = {**os.environ, **variables, "RANKS": "1", "PYTHON": sys.executable}
    ended = subprocess.run(script, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert message in ended.stderr
