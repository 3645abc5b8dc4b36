"""What `distopt launch slurm` prints, run by a real Slurm of two nodes: stopped, requeued, and ended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from distopt import load_config
from distopt.callbacks import Callback, Run
from distopt.checkpoint import directory
from tests.faults.soak import compare
from tests.kit.slurm import SHARED, Lab, missing, poll
from tests.runs import rows, status

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
STEPS = 80
SHORT = [f"max_steps={STEPS}", "checkpoint.every=10", "eval.every=40", "log.every=1", "deterministic=true"]


class Crash(Callback):
    """Fails after a step, each time."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, run: Run) -> None:
        if run.step == self.step:
            raise ZeroDivisionError("as ever")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    if reason := missing():
        pytest.skip(reason)
    with Lab() as lab:
        yield lab


def script(lab: Lab, name: str, *overrides: str, facts: tuple[str, ...] = ()) -> str:
    """The batch script of a short quickstart, with a rank on each node, which writes to the folder `name`."""
    arguments = [QUICKSTART, *SHORT, f"work_dir={SHARED}/{name}", *overrides]
    own = ("--nodes=2", "--gpus=0", "--ranks=1", "--time=30", *facts)
    text = lab.run("distopt", "launch", "slurm", *arguments, *own)
    (lab.shared / f"{name}.sbatch").write_text(text)
    return f"{name}.sbatch"


def wait_for_step(run: Path, step: int) -> None:
    def reached() -> bool:
        path = run / "metrics.jsonl"
        return path.exists() and path.read_text().count('"loss"') >= step

    poll(reached, f"step {step}", 120)


def ends(run: Path) -> list[str]:
    """How each start of the run's job has ended."""
    return [start["end"] for start in json.loads((run / "starts.json").read_text())]


@pytest.fixture(scope="module")
def whole(lab: Lab) -> Path:
    """The run directory of a job that nobody disturbs."""
    job = lab.submit(script(lab, "whole"))
    assert lab.wait(job, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", lab.output()
    return lab.shared / "whole"


def test_the_quickstart_runs_on_two_nodes(whole: Path, lab: Lab) -> None:
    assert status(whole)["state"] == "done"
    assert directory.read_progress(directory.newest(whole)).world_size == 2
    assert ends(whole) == ["done"]
    assert {path.name for path in (whole / "logs").glob("*.0/*")} == {"node1", "node2"}
    assert "[r0] step 80/80" in lab.output()


def test_a_run_that_is_done_is_not_run_again(whole: Path, lab: Lab) -> None:
    before = (whole / "status.json").read_bytes()
    job = lab.submit("whole.sbatch")
    assert lab.wait(job, "COMPLETED", "FAILED")["JobState"] == "COMPLETED"
    assert f"{SHARED}/whole: finished, nothing to do" in lab.output()
    assert (whole / "status.json").read_bytes() == before


@pytest.mark.parametrize("signal", ["USR1", pytest.param("TERM", marks=pytest.mark.slow)])
def test_a_signal_before_the_time_limit_is_a_requeue_and_changes_no_bit(
    whole: Path, lab: Lab, signal: str
) -> None:
    job = lab.submit(script(lab, signal))
    run = lab.shared / signal
    wait_for_step(run, 5)
    lab.run("scancel", f"--signal={signal}", job)  # the same path as of --signal, without the wait
    done = lab.wait(job, "COMPLETED", "FAILED")
    assert (done["JobState"], done["Restarts"]) == ("COMPLETED", "1")
    assert ends(run) == ["preempted", "done"]
    assert [row["step"] for row in rows(run)] == list(range(1, STEPS + 1))
    assert compare(run, whole) == []


@pytest.mark.parametrize(
    ("step", "restarts", "saved"), [(5, 0, 0), pytest.param(15, 1, 10, marks=pytest.mark.slow)]
)
def test_a_crash_is_requeued_as_long_as_there_are_new_checkpoints(
    lab: Lab, step: int, restarts: int, saved: int
) -> None:
    name = f"crash_{step}"
    crash = f"callbacks=[{{type: tests.system.test_slurm:Crash, step: {step}}}]"
    job = lab.submit(script(lab, name, crash))
    done = lab.wait(job, "COMPLETED", "FAILED")
    assert (done["JobState"], done["Restarts"]) == ("FAILED", str(restarts))
    assert ends(lab.shared / name) == ["failed"] * (restarts + 1)
    assert f"not requeued: this start came to no new checkpoint after step {saved}\n" in lab.output()
    assert f"ZeroDivisionError: as ever\n  logs: {SHARED}/{name}/logs\n" in lab.output()


def test_a_mistake_ends_the_job_at_once(lab: Lab) -> None:
    name = script(lab, "mistake")
    text = (lab.shared / name).read_text()
    (lab.shared / name).write_text(text.replace("max_steps", "max_step"))
    done = lab.wait(lab.submit(name), "COMPLETED", "FAILED")
    assert (done["ExitCode"], done["Restarts"]) == ("2:0", "0")
    assert "did you mean: max_steps?" in lab.output()
    assert not (lab.shared / "mistake").exists()


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 5], ids=["as it starts", "in the middle"])
def test_preemption_is_a_requeue_and_changes_no_bit(whole: Path, lab: Lab, step: int) -> None:
    job = lab.submit(script(lab, f"preempted_{step}"))
    run = lab.shared / f"preempted_{step}"
    if step:
        wait_for_step(run, step)
    else:
        poll(lambda: [*run.glob("logs/*/*")], "torchrun")
    urgent = lab.submit("--partition=high", "--nodes=2", "--exclusive", "--wrap=true")
    lab.wait(urgent, "COMPLETED")
    done = lab.wait(job, "COMPLETED", "FAILED")
    assert (done["JobState"], done["Restarts"]) == ("COMPLETED", "1")
    assert ends(run) == ["preempted", "done"]
    assert compare(run, whole) == []


@pytest.mark.slow
@pytest.mark.parametrize("node", ["node1", "node2"], ids=["of the script", "another"])
def test_a_node_that_is_lost_is_a_requeue_and_changes_no_bit(whole: Path, lab: Lab, node: str) -> None:
    job = lab.submit(script(lab, f"lost_{node}"))
    run = lab.shared / f"lost_{node}"
    wait_for_step(run, 5)  # before the first checkpoint
    lab.kill_node(node)
    poll(lambda: lab.job(job)["JobState"] != "RUNNING", "the loss noticed")
    lab.start_node(node)
    done = lab.wait(job, "COMPLETED", "FAILED")
    assert (done["JobState"], done["Restarts"]) == ("COMPLETED", "1")
    assert ends(run) == ["lost", "done"]
    assert compare(run, whole) == []


@pytest.mark.slow
def test_scancel_leaves_a_run_that_the_same_job_continues(whole: Path, lab: Lab) -> None:
    name = script(lab, "cancelled")
    run = lab.shared / "cancelled"
    job = lab.submit(name)
    wait_for_step(run, 5)
    lab.run("scancel", job)
    assert lab.wait(job, "CANCELLED")["Restarts"] == "0"
    assert status(run)["state"] == "preempted"
    assert lab.wait(lab.submit(name), "COMPLETED", "FAILED")["JobState"] == "COMPLETED"
    assert compare(run, whole) == []


@pytest.mark.slow
def test_the_tasks_of_an_array_are_runs_of_their_own(lab: Lab) -> None:
    rates = "rates=(1e-3 3e-3); export RATE=${rates[$SLURM_ARRAY_TASK_ID]}"
    overrides = [f"work_dir={SHARED}/sweep_${{SLURM_ARRAY_TASK_ID:-0}}", "optimizer.lr=${RATE:-1e-3}"]
    name = script(lab, "sweep", *overrides, facts=("--nodes=1", f"--setup={rates}"))
    job = lab.submit("--array=0-1", name)
    runs = [lab.shared / f"sweep_{task}" for task in range(2)]
    for run in runs:
        wait_for_step(run, 5)
    tasks = [lab.job(f"{job}_{task}") for task in range(2)]
    [stopped] = [task for task in range(2) if tasks[task]["JobId"] == job]  # its number is the array's, too
    lab.run("scancel", "--signal=USR1", f"{job}_{stopped}")
    done = [lab.wait(f"{job}_{task}", "COMPLETED", "FAILED") for task in range(2)]
    assert [task["JobState"] for task in done] == ["COMPLETED", "COMPLETED"]
    assert [task["Restarts"] for task in done] == [str(int(task == stopped)) for task in range(2)]
    assert [load_config(run / "config.yaml").optimizer.lr for run in runs] == [1e-3, 3e-3]
