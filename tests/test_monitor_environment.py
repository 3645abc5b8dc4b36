"""What a run trains in, as data and as a text."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from distopt.monitor import environment
from distopt.monitor.environment import git_state, hosts, markdown, this_rank


def git(directory: Path, *arguments: str) -> None:
    author = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", directory, *author, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-b", "trunk")
    (tmp_path / "net.py").write_text("width = 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    return tmp_path


def rank(host: str, device: str = "NVIDIA H100, 80 GiB") -> dict[str, Any]:
    return {"host": host, "device": device, "driver": "550.54", "cpus": 96, "memory": "1024 GiB"}


def found(**changes: Any) -> dict[str, Any]:
    return {**environment.environment([rank("node0")]), **changes}


def test_the_state_of_a_working_tree_has_its_commit_branch_and_changes(repository: Path) -> None:
    clean = git_state(repository)
    (repository / "net.py").write_text("width = 2\n")
    (repository / "new.py").touch()
    dirty = git_state(repository)
    assert clean
    assert dirty
    assert len(clean["commit"]) == 40
    assert (clean["branch"], clean["changed"], clean["untracked"], clean["diffstat"]) == ("trunk", 0, 0, [])
    assert (dirty["commit"], dirty["changed"], dirty["untracked"]) == (clean["commit"], 1, 1)
    assert dirty["diffstat"][-1] == "1 file changed, 1 insertion(+), 1 deletion(-)"


def test_a_repository_without_a_commit_has_a_state(tmp_path: Path) -> None:
    git(tmp_path, "init", "-b", "trunk")
    (tmp_path / "net.py").touch()
    git(tmp_path, "add", ".")
    state = git_state(tmp_path)
    assert state
    assert (state["branch"], state["changed"], state["diffstat"]) == ("trunk", 1, [])


def test_without_a_repository_nothing_is_said_of_git(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None
    assert "| git |" not in markdown(found(git=None))


def test_without_git_nothing_is_said_of_it(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert git_state(repository) is None


def test_a_git_that_does_not_answer_is_not_waited_for(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = repository / "bin" / "git"
    slow.parent.mkdir()
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(environment, "_PATIENCE", 0.1)
    assert git_state(repository) is None


def test_each_host_has_its_ranks_and_their_devices() -> None:
    of_hosts = hosts([rank("a"), rank("b"), rank("a"), rank("b", "cpu")])
    assert [(host["host"], host["ranks"], host["devices"]) for host in of_hosts] == [
        ("a", [0, 2], ["NVIDIA H100, 80 GiB"] * 2),
        ("b", [1, 3], ["NVIDIA H100, 80 GiB", "cpu"]),
    ]


def test_hosts_that_are_alike_are_one_line() -> None:
    ranks = [rank(f"node{i // 8:02}") for i in range(512)]
    ranks[8:16] = [rank("node01", "NVIDIA A100, 40 GiB")] * 8
    lines = markdown(found(hosts=hosts(ranks))).splitlines()
    assert [line for line in lines if "node" in line] == [
        "| 63 × node{00,02-63} | 0–7, 16–511 | 8 × NVIDIA H100, 80 GiB | 550.54 | 96 | 1024 GiB |",
        "| node01 | 8–15 | 8 × NVIDIA A100, 40 GiB | 550.54 | 96 | 1024 GiB |",
    ]


def test_this_rank_knows_its_host_and_device() -> None:
    mine = this_rank(torch.device("cpu"))
    assert mine["device"] == "cpu"
    assert mine["cpus"] == os.cpu_count()


def test_variables_that_matter_are_kept_and_no_secret_is(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {"NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "4", "SLURM_JOB_ID": "17", "TORCHELASTIC_RUN_ID": "r|1"}
    secret = {"AWS_SECRET_ACCESS_KEY": "s3cret", "TORCH_HUB_TOKEN": "s3cret", "MY_PASSWORD": "s3cret"}
    for name, value in (kept | secret).items():
        monkeypatch.setenv(name, value)
    whole = found()
    assert kept.items() <= whole["variables"].items()
    assert "s3cret" not in str(whole)
    assert "| `TORCHELASTIC_RUN_ID` | `r\\|1` |" in markdown(whole).splitlines()
