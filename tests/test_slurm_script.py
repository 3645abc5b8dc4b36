"""The batch script without Slurm: programs that only say what they were asked stand in for Slurm's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from distopt.cli import main
from tests.runs import write_config

SRUN = """#!/usr/bin/env bash
printf '%s\\n' "$@" >asked
echo "$HEAD_NODE" >head
exit 3
"""
SCONTROL = """#!/usr/bin/env bash
case "$*" in
*hostnames*) seq --format='node-with-a-long-name-%05g' 1 20000 ;;
*"show job 7") echo "JobId=7 PreemptEligibleTime=2026-11-27T02:21:38 PreemptTime=${PREEMPTED:-None}" ;;
requeue*) echo "$*" >requeued ;;
esac
"""


class Submitted:
    """A batch script as it runs on its first node."""

    def __init__(self, folder: Path, script: str) -> None:
        self.folder = folder
        for name, text in {
            "srun": SRUN,
            "scontrol": SCONTROL,
            "train.sbatch": script,
            "sleep": "#!/bin/sh\n",
        }.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "PATH": f"{self.folder}:{os.environ['PATH']}",
            "PYTHON": sys.executable,
            "SLURM_NNODES": "1",
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "all",
        }
        return subprocess.run(
            ["bash", "train.sbatch", *arguments],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def asked(self) -> list[str]:
        """What srun was called with."""
        return (self.folder / "asked").read_text().splitlines()

    @property
    def is_requeued(self) -> bool:
        return (self.folder / "requeued").exists()


def submitted(capsys: pytest.CaptureFixture[str], folder: Path, *facts: str) -> Submitted:
    config = write_config(folder, strategy="single")
    assert main(["launch", "slurm", str(config), "--gpus=0", "--ranks=1", *facts]) == 0
    return Submitted(folder, capsys.readouterr().out)


def test_the_first_node_is_the_head_however_many_follow_and_the_status_is_sruns(capsys, tmp_path):
    folder = tmp_path / "it's a folder"
    folder.mkdir()
    job = submitted(capsys, folder)
    ended = job.run()
    assert (ended.returncode, (folder / "head").read_text()) == (3, "node-with-a-long-name-00001\n")
    assert not job.is_requeued
    assert "--export=ALL" in job.asked, "sbatch --export=NONE would hold for the ranks as well"


def test_ranks_that_were_preempted_before_they_said_a_word_are_started_again(capsys, tmp_path, monkeypatch):
    job = submitted(capsys, tmp_path)
    monkeypatch.setenv("PREEMPTED", "2026-11-27T02:21:43")
    job.run()
    assert job.is_requeued


def test_what_a_script_is_given_comes_after_the_arguments_in_it(capsys, tmp_path):
    job = submitted(capsys, tmp_path)
    job.run("max_steps=7")
    assert job.asked[-2:] == [str(tmp_path / "cfg.yaml"), "max_steps=7"]
    ended = job.run("another.yaml")
    assert ended.returncode == 2
    assert "another.yaml" in ended.stderr


def test_a_line_of_setup_that_fails_ends_the_job(capsys, tmp_path):
    job = submitted(capsys, tmp_path, "--setup=cd nowhere")
    ended = job.run()
    assert (ended.returncode, "nowhere" in ended.stderr) == (1, True)
    assert not (tmp_path / "asked").exists()
