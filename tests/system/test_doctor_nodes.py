"""`distopt doctor` on two nodes: network namespaces with a hosts file and an agent of torchrun each."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.system
NODES = {"na": "10.9.0.1", "nb": "10.9.0.2"}


@pytest.fixture
def nodes() -> Iterator[list[str]]:
    """Two namespaces with an interface in each, `dna` and `dnb`."""
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("network namespaces need root, ip and unshare")
    names = [f"{name}-{os.getpid()}" for name in NODES]
    if subprocess.run(["ip", "netns", "add", names[0]], capture_output=True, check=False).returncode:
        pytest.skip("network namespaces cannot be made here")
    try:
        a, b = names
        for command in (
            f"netns add {b}",
            f"link add dna netns {a} type veth peer name dnb netns {b}",
            *(f"-n {name} link set lo up" for name in names),
            *(
                f"-n {name} {what}"
                for name, (node, address) in zip(names, NODES.items(), strict=True)
                for what in (f"addr add {address}/24 dev d{node}", f"link set d{node} up")
            ),
        ):
            subprocess.run(["ip", *command.split()], check=True)
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def examine(nodes: list[str], folder: Path, **address_of: str) -> tuple[list[int], str]:
    """The exit status of each node's torchrun, and all that they print.

    Args:
        nodes: The namespaces.
        folder: For files, and as work_dir.
        **address_of: Node → what its name stands for in its own hosts file, where not its address.
    """
    running = []
    for namespace, (node, address) in zip(nodes, NODES.items(), strict=True):
        hosts = folder / f"hosts-{node}"
        known = NODES | {node: address_of.get(node, address)}
        hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{known[name]} {name}\n" for name in known))
        torchrun = (
            f"{sys.executable} -m torch.distributed.run --nnodes=2 --nproc_per_node=2 --local-addr={address}"
        )
        rendezvous = f"--rdzv-backend=c10d --rdzv-endpoint={NODES['na']}:29555 --rdzv-id=doctor"
        doctor = f"-m distopt doctor --work-dir {folder} --timeout 30"
        script = f"hostname {node}; mount --bind {hosts} /etc/hosts; exec {torchrun} {rendezvous} {doctor}"
        running.append(
            subprocess.Popen(
                ["ip", "netns", "exec", namespace, "unshare", "--uts", "--mount", "sh", "-c", script],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        )
    try:
        printed = [process.communicate(timeout=100)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    return [process.returncode for process in running], "".join(printed)


def test_two_nodes_that_are_alike_have_nothing_odd(nodes, tmp_path):
    status, printed = examine(nodes, tmp_path)
    assert status == [0, 0], printed
    assert "4 on 2 nodes: na, nb" in printed
    assert "clocks" in printed


def test_a_node_whose_name_stands_for_a_loopback_address_is_named_and_nothing_hangs(nodes, tmp_path):
    status, printed = examine(nodes, tmp_path, nb="127.0.1.1")
    assert status == [1, 1], printed
    assert "fault nb: gloo listens at 127.0.1.1, which no other node can reach" in printed
    assert "export GLOO_SOCKET_IFNAME=dnb" in printed
    assert "fault nb: no connection from na: 127.0.1.1: Connection refused" in printed
