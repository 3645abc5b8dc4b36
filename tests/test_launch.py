"""`distopt launch`: one set of facts, checked, and what is rendered from it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from distopt.cli import main

LAUNCH = Path(__file__).parent.parent / "launch"


def printed(capsys, *argv: str) -> str:
    assert main(["launch", *argv]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "path"),
    [(["local"], "local.sh"), (["multinode"], "multinode.sh"), (["slurm"], "slurm/train.sbatch")],
)
def test_the_scripts_of_the_repository_are_those_of_no_given_facts(capsys, argv, path):
    assert printed(capsys, *argv) == (LAUNCH / path).read_text(encoding="utf-8")


def test_options_win_over_the_file_of_facts(capsys, tmp_path):
    facts = tmp_path / "cluster.yaml"
    facts.write_text("gpus: 4\nenv: {NCCL_DEBUG: WARN}\n")
    text = printed(capsys, "local", "--facts", str(facts), "--gpus", "2")
    assert "RANKS=${RANKS:-2}" in text
    assert "NCCL_DEBUG=${NCCL_DEBUG:-WARN}" in text


def test_options_that_may_be_repeated_are_added_to_the_file_of_facts(capsys, tmp_path):
    facts = tmp_path / "cluster.yaml"
    facts.write_text("env: {A: a, B: b}\nsetup: [source venv]\n")
    lines = printed(
        capsys, "local", "--facts", str(facts), "--env", "B=c", "--env", "C=d", "--setup", "cd run"
    ).splitlines()
    assert lines[1:7] == [
        "set -e",
        "source venv",
        "cd run",
        "export A=${A:-a}",
        "export B=${B:-c}",
        "export C=${C:-d}",
    ]


def test_numbers_need_no_quotes_in_the_file_of_facts(capsys, tmp_path):
    facts = tmp_path / "cluster.yaml"
    facts.write_text("time: 60\nmemory: 64000\nenv: {NCCL_P2P_DISABLE: 1}\n")
    text = printed(capsys, "slurm", "--facts", str(facts))
    assert {"time=60", "mem=64000"} <= set(asked_of_slurm(text))
    assert "export NCCL_P2P_DISABLE=${NCCL_P2P_DISABLE:-1}" in text


def test_every_option_is_explained_by_the_text_of_its_fact(capsys):
    with pytest.raises(SystemExit):
        main(["launch", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--grace GRACE Seconds between the signal to save and the end." in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["locl"], "did you mean: local?"),
        (["local", "--nodes", "0"], "--nodes: nodes: wrong value"),
        (["local", "--env", "NCCL_DEBUG"], "--env: env: a variable is written NAME=VALUE"),
        (["local", "--env", "NCCL DEBUG=1"], "--env: env.NCCL DEBUG: no name of an environment variable"),
        (["local", "configs/quickstart.yaml", "--ranks", "3"], "cannot be divided over 3 ranks"),
    ],
)
def test_a_mistake_is_told_and_nothing_is_printed(capsys, argv, message):
    assert main(["launch", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err


def test_an_unknown_fact_is_told_with_its_line_and_the_nearest(capsys, tmp_path):
    facts = tmp_path / "cluster.yaml"
    facts.write_text("gpus: 4\nnodez: 2\n")
    assert main(["launch", "local", "--facts", str(facts)]) == 2
    err = capsys.readouterr().err
    assert f"{facts}:2: nodez: unknown key" in err
    assert "did you mean: nodes?" in err


def asked_of_slurm(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]


def test_what_is_asked_of_slurm_are_the_facts(capsys):
    facts = [
        "--nodes=4",
        "--cpus=64",
        "--memory=512G",
        "--time=2-00:00:00",
        "--partition=gpu",
        "--account=me",
    ]
    text = printed(
        capsys, "slurm", *facts, "--grace=600", "--env=NCCL_SOCKET_IFNAME=ib0", "--setup=module load cuda"
    )
    asked = asked_of_slurm(text)
    assert asked == [
        "job-name=distopt",
        "nodes=4",
        "ntasks-per-node=1",
        "gpus-per-node=8",
        "cpus-per-task=64",
        "mem=512G",
        "time=2-00:00:00",
        "partition=gpu",
        "account=me",
        "signal=USR1@600",
        "output=%x-%j.log",
        "open-mode=append",
        "requeue",
    ]
    lines = text.splitlines()
    assert lines[len(asked) + 1 :][:2] == ["set -e", "module load cuda"]
    assert "export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-ib0}" in lines
    assert "export PET_SHUTDOWN_TIMEOUT=${PET_SHUTDOWN_TIMEOUT:-600}" in lines


def test_no_requeues_are_told_to_slurm_as_well(capsys):
    assert asked_of_slurm(printed(capsys, "slurm", "--requeues=0"))[-1] == "no-requeue"


def test_ranks_on_the_cpu_ask_for_no_gpu_and_see_none(capsys):
    text = printed(capsys, "slurm", "--gpus=0")
    assert not [fact for fact in asked_of_slurm(text) if "gpu" in fact]
    assert "export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-''}" in text


def test_a_container_is_what_the_commands_follow(capsys):
    text = printed(capsys, "slurm", "--image=train.sif", "--mounts=/data:/data", "--mounts=/runs:/runs")
    container = "apptainer exec --nv --bind=/data:/data --bind=/runs:/runs train.sif"
    assert f"export CONTAINER=${{CONTAINER:-'{container}'}}" in text


@pytest.mark.parametrize("time", ["5:01", "6", "0", "0:5:1", "1-0", "0-0:6", "0-0:5:1"])
def test_the_time_limit_may_have_any_form_of_slurms(capsys, time):
    assert f"time={time}" in asked_of_slurm(printed(capsys, "slurm", f"--time={time}"))


@pytest.mark.parametrize(
    ("fact", "message"),
    [
        ("--time=4h", "time: no time limit of Slurm's"),
        ("--time=1-", "time: no time limit of Slurm's"),
        ("--time=5", "time: the signal to save, 300 s before the end, would come at the start"),
        ("--memory=64GB", "memory: no amount of memory"),
        ("--name=my run", "name: has a blank"),
        ("--name=sweep/3", "name: has a slash"),
        ("--mounts=/data", "mounts: not of the form"),
    ],
)
def test_a_fact_that_slurm_would_not_take_is_told(capsys, fact, message):
    assert main(["launch", "slurm", fact]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err


def refused(capsys, *argv: str) -> str:
    assert main(["launch", "slurm", "--gpus=1", *argv]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("disk", ["/tmp", "/dev/shm", "/var/tmp"])
def test_nodes_that_do_not_share_the_run_directory_are_told(capsys, disk):
    config = ["configs/quickstart.yaml", f"work_dir={disk}/run"]
    message = (
        f"override work_dir={disk}/run: work_dir: is below {disk}, of which each of the 2 nodes has its own"
    )
    assert message in refused(capsys, *config, "--nodes=2")
    assert "#SBATCH" in printed(capsys, "slurm", *config, "--gpus=1")


def test_a_stop_has_to_fit_the_grace_period(capsys, tmp_path):
    (tmp_path / "status.json").write_text('{"save_seconds": 170.0}')
    config = ["configs/quickstart.yaml", f"work_dir={tmp_path}"]
    err = refused(capsys, *config, "hang_timeout=20")
    assert "grace: is short: the last checkpoint took 170 s to be written" in err
    assert "override hang_timeout=20: hang_timeout: is longer than the grace period of 300 s" in err
    assert "#SBATCH" in printed(capsys, "slurm", *config, "hang_timeout=5", "--gpus=1", "--grace=340")


def test_a_job_that_is_requeued_has_to_continue(capsys):
    err = refused(capsys, "configs/quickstart.yaml", "resume=never")
    assert "override resume=never: resume: a job that is requeued has to continue" in err


ROOT = LAUNCH.parent
SCRIPTS = [
    *LAUNCH.rglob("*.sh"),
    *LAUNCH.rglob("*.sbatch"),
    *ROOT.glob("distopt/launch/bodies/*.sh"),
    ROOT / ".ci/run",
]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_shellcheck_finds_nothing(path):
    places = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    shellcheck = shutil.which("shellcheck", path=places)
    assert shellcheck
    found = subprocess.run([shellcheck, "--shell=bash", path], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_a_fact_that_slurm_does_not_know_is_told_with_its_line(capsys, tmp_path):
    facts = tmp_path / "cluster.yaml"
    facts.write_text("nodes: 2\ntime: soon\n")
    assert main(["launch", "slurm", "--facts", str(facts)]) == 2
    assert f"{facts}:2: time: no time limit of Slurm's" in capsys.readouterr().err


def test_a_fact_that_does_not_fit_the_config_is_told_as_the_option_that_it_is(capsys):
    assert main(["launch", "jobset", "configs/quickstart.yaml", "--image", "x", "--mounts", "y"]) == 2
    assert "--mounts: mounts: not of the form" in capsys.readouterr().err
