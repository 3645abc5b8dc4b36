"""`distopt doctor` on real ranks: each finding has its cause, and points at the rank or node that is odd."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from threading import Event

import pytest
import torch.distributed as dist

from distopt.cli import main
from distopt.launch.doctor import measure, probe
from distopt.launch.doctor.compare import findings
from distopt.launch.doctor.examine import _facts, examine
from distopt.launch.doctor.meeting import Meeting, within
from distopt.launch.doctor.network import listen, unreachable
from distopt.launch.doctor.places import Places
from tests.kit import close_ranks, run_distributed


@pytest.fixture(autouse=True)
def no_group() -> None:
    """What a test before has left in this process."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _examine(work_dir: Path, odd: dict, timeout: float) -> list[tuple[str, str]] | None:
    """Each rank is a node; rank 1 is `odd`."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        return _examine_with(monkeypatch, work_dir, odd, timeout)


def _examine_with(
    monkeypatch: pytest.MonkeyPatch, work_dir: Path, odd: dict, timeout: float
) -> list[tuple[str, str]] | None:
    dist.destroy_process_group()
    rank = int(os.environ["RANK"])
    os.environ |= {"GROUP_RANK": str(rank), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    os.environ.pop("OMP_NUM_THREADS")
    if rank == 1:
        os.environ.update(odd.get("environ", {}))
        work_dir = odd.get("work_dir", work_dir)
        clock = time.time
        monkeypatch.setattr(time, "time", lambda: clock() + odd.get("ahead", 0))
        if "slow" in odd:
            monkeypatch.setattr(measure, "_time_work", lambda device: 1.0)
        if "hangs" in odd:
            monkeypatch.setattr(measure, "_time_work", lambda device: Event().wait())
    meeting = Meeting.open(timeout)
    examination = examine(meeting, work_dir)
    if examination is None:
        meeting.tell("left", True)
        return None
    meeting.hear("left", range(1, meeting.size))
    found = findings(examination, Places(examination.everyone))
    return [(finding.where, finding.text) for finding in found if finding.weight < 2]


def _found(tmp_path: Path, timeout: float = 20, **odd: object) -> list[tuple[str, str]]:
    return run_distributed(_examine, tmp_path, odd, timeout, world=3)[0]


@pytest.fixture(scope="module")
def node() -> str:
    return f"{socket.gethostname()} (node 1)"


def test_a_rank_whose_distopt_tells_other_facts_is_named():
    with pytest.raises(RuntimeError, match=r"rank 3 runs distopt 0\.9\.9"):
        _facts(3, {"versions": {"distopt": "0.9.9"}, "rank": 3})


def test_ranks_that_are_alike_have_nothing_odd_and_leave_nothing(tmp_path):
    assert _found(tmp_path / "run") == []
    assert list(tmp_path.iterdir()) == []


def test_another_variable_is_told_with_what_the_others_have(tmp_path, node):
    found = _found(tmp_path, environ={"NCCL_ALGO": "Tree"})
    assert found == [(node, "NCCL_ALGO: Tree; most have unset")]


def test_a_work_dir_of_the_same_name_that_is_another_directory_is_told(tmp_path, node):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    found = _found(tmp_path / "here", work_dir=tmp_path / "there")
    assert (
        node,
        "work_dir is not the same directory as rank 0's: it has to be on storage that all nodes share",
    ) in found
    assert not list(tmp_path.glob("*/*"))


def test_a_clock_that_is_ahead_is_told_by_how_much(tmp_path, node):
    assert _found(tmp_path, ahead=90.0) == [
        (node, "its clock is 90.0 s ahead of the others: chronyc tracking")
    ]


def test_a_rank_that_takes_longer_for_the_same_work_is_told(tmp_path, node):
    ((where, text),) = _found(tmp_path, slow=True)
    assert where == node
    assert text.startswith("the same work takes ")


@pytest.mark.system
def test_a_rank_that_hangs_is_named_after_the_timeout_before_those_that_wait_for_it(tmp_path, node):
    found = _found(tmp_path, hangs=True, timeout=6)
    close_ranks()  # they wait still
    assert found[0][0] == node
    assert [text for _, text in found] == [
        "does not get through work: TimeoutError: no end after 6 s",
        "does not get through messages between rank 0 and each node: TimeoutError: no end after 6 s",
    ]


def test_an_interface_that_a_node_lacks_is_told_before_a_group_is_formed(tmp_path, node):
    found = _found(tmp_path, environ={"GLOO_SOCKET_IFNAME": "eth77"})
    assert found[0][0] == node
    assert found[0][1].startswith("GLOO_SOCKET_IFNAME=eth77: there is no such interface; there are ")


def _leave_one_out(work_dir: Path) -> list[int] | None:
    dist.destroy_process_group()
    if os.environ["RANK"] == "2":
        return None
    meeting = Meeting.open(timeout=4)
    examination = examine(meeting, work_dir)
    if examination is None:
        meeting.tell("left", True)
        return None
    meeting.hear("left", [1])
    return examination.missing


@pytest.mark.slow
def test_a_rank_that_does_not_come_is_named(tmp_path):
    assert run_distributed(_leave_one_out, tmp_path, world=3)[0] == [2]


def test_a_node_at_which_nobody_listens_is_named_with_the_reason():
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = free.getsockname()
    (listening,) = listen({"127.0.0.1"})
    with listening:
        found = unreachable({4: [nobody], 7: [listening.getsockname()]}, timeout=5)
    assert found == {4: "127.0.0.1: Connection refused"}


def test_what_does_not_end_is_left_after_the_timeout():
    forever, _ = socket.socketpair()
    with pytest.raises(TimeoutError, match=r"no end after 0\.1 s"):
        within(0.1, lambda: forever.recv(1))
    with pytest.raises(ZeroDivisionError):
        within(10, lambda: 1 / 0)
    assert within(10, lambda: 7) == 7


def test_one_process_is_examined_without_a_launcher(capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert main(["doctor", "--work-dir", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["ranks", "1:", socket.gethostname()]
    assert out.endswith("nothing is odd\n")


def test_a_numa_node_without_cores_is_none_that_a_rank_could_be_bound_to(tmp_path, monkeypatch):
    for node, cores in {"node0": f"0-{os.cpu_count()}", "node1": ""}.items():
        (tmp_path / node).mkdir()
        (tmp_path / node / "cpulist").write_text(f"{cores}\n")
    monkeypatch.setattr(probe, "_NODES", tmp_path)
    facts = probe.probe(None)
    assert (facts.numa, facts.bound_to) == ([0], [0])


def test_json_has_all_facts_of_each_rank(capsys):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["everyone"][0]["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert (found["size"], found["missing"]) == (1, [])


def test_what_is_odd_is_the_exit_status(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth77")
    assert main(["doctor", "--work-dir", str(tmp_path)]) == 1
    assert "fault GLOO_SOCKET_IFNAME=eth77: there is no such interface" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [["nothing.yaml"], ["--timeout", "0"]])
def test_wrong_input_is_told_once(argv, capsys):
    assert main(["doctor", *argv]) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.system
def test_under_torchrun_rank_0_alone_prints_and_the_status_is_that_of_all(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    doctor = ["--nproc_per_node=2", "-m", "distopt", "doctor", "--work-dir", str(tmp_path)]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    for variables, status in (({}, 0), ({"GLOO_SOCKET_IFNAME": "eth77"}, 1)):
        run = subprocess.run(
            [*torchrun, *doctor],
            env=environ | variables,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert run.returncode == status, run.stderr
        assert run.stdout.count("ranks  ") == 1
        assert ("all-reduce, gloo" in run.stdout) == (status == 0)
