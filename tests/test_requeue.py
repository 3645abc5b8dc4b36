"""Whether a job starts once more: as long as it gets further, and never when it is done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distopt.errors import LOST, SILENT
from distopt.launch.requeue import Start, end_of, main, reason_to_stop
from tests.runs import STEPS, train, write_config


def starts(*ends: str) -> list[Start]:
    """`10 failed`: began at step 10, and failed."""
    parts = (end.split() for end in ends)
    return [Start(f"7.{i}", int(step), end) for i, (step, end) in enumerate(parts)]


@pytest.mark.parametrize(
    ("ends", "step", "stops"),
    [
        (["0 failed"], 0, "this start came to no new checkpoint after step 0"),
        (["0 failed"], 10, None),
        (["0 failed", "10 failed"], 10, "this start came to no new checkpoint after step 10"),
        (["0 failed", "10 failed"], 20, None),
        (["0 lost"], 0, None),
        (["0 lost", "0 lost"], 0, "the last 2 starts came to no new checkpoint after step 0"),
        (["0 lost", "0 failed"], 0, "the last 2 starts came to no new checkpoint after step 0"),
        (["0 lost", "0 lost"], 10, None),
        (["0 lost", "0 preempted", "0 lost"], 0, "the last 2 starts came to no new checkpoint after step 0"),
        (["0 preempted", "0 preempted", "0 preempted"], 0, None),
        (["0 preempted", "0 preempted", "0 failed"], 0, "this start came to no new checkpoint after step 0"),
        (["0 preempted"] * 4, 0, "it has been requeued 3 times, which is the limit"),
        (["0 lost", "10 lost", "20 lost", "30 lost"], 40, "it has been requeued 3 times, which is the limit"),
    ],
)
def test_a_job_stops_at_the_limit_or_where_it_gets_no_further(ends, step, stops):
    assert reason_to_stop(starts(*ends), step, requeues=3) == stops


@pytest.mark.parametrize(
    ("status", "end"),
    [
        ({"state": "done", "launch": "7.1"}, "done"),
        ({"state": "preempted", "launch": "7.1", "reason": "SIGUSR1"}, "preempted"),
        ({"state": "failed", "launch": "7.1", "reason": "rank 0: ValueError: no"}, "failed"),
        ({"state": "failed", "launch": "7.1", "reason": f"rank 3 failed first: {LOST}"}, "lost"),
        (
            {
                "state": "failed",
                "launch": "7.1",
                "reason": f"rank 3 failed first: silent for 300 s: {SILENT}",
            },
            "lost",
        ),
        ({"state": "running", "launch": "7.1", "reason": None}, "lost"),
        ({"state": "preempted", "launch": "7.0", "reason": "SIGUSR1"}, "failed"),
        (None, "failed"),
    ],
)
def test_what_an_earlier_start_left_says_nothing_of_this_one(status, end):
    assert end_of("7.1", status)[0] == end


class Job:
    """Asks as the batch script does, and plays the training."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.config = write_config(folder, strategy="single")
        self.run = folder / "run"
        self._capsys = capsys

    def ask(self, moment: str, launch: str, *overrides: str) -> str:
        self._capsys.readouterr()
        assert main([moment, launch, "5", str(self.config), *overrides]) == 0
        verdict, work_dir = self._capsys.readouterr().out.split()
        assert work_dir == str(self.run)
        return verdict

    def ends(self, launch: str, **status: Any) -> None:
        (self.run / "status.json").write_text(json.dumps({"launch": launch, **status}))


@pytest.fixture
def job(tmp_path, capsys) -> Job:
    return Job(tmp_path, capsys)


def test_a_preempted_job_is_requeued(job):
    assert job.ask("before", "7.0") == "start"
    job.ends("7.0", state="preempted", reason="SIGUSR1")
    assert job.ask("after", "7.0") == "requeue"
    assert job.ask("before", "7.1") == "start"


def test_a_job_that_fails_without_a_checkpoint_stops_until_it_is_submitted_again(job):
    job.ask("before", "7.0")
    job.ends("7.0", state="failed", reason="rank 0: ValueError: no")
    assert job.ask("after", "7.0") == "stop"
    assert job.ask("before", "7.1") == "stop"  # whoever has requeued it
    assert job.ask("before", "8.0") == "start"


def test_a_job_that_is_preempted_before_its_training_began_is_requeued(job):
    assert job.ask("before", "7.0") == "start"
    assert job.ask("preempted", "7.0") == "requeue"
    assert job.ask("before", "7.1") == "start"
    assert job.ask("after", "7.1") == "stop"


def test_a_job_whose_record_was_deleted_meanwhile_is_requeued(job):
    job.ask("before", "7.0")
    (job.run / "starts.json").unlink()
    job.ends("7.0", state="preempted", reason="SIGUSR1")
    assert job.ask("after", "7.0") == "requeue"


def test_a_job_that_finds_another_at_work_leaves_its_count_alone(job):
    job.ask("before", "7.0")
    job.ask("before", "8.0")
    assert job.ask("after", "8.0") == "stop"  # its ranks were refused
    job.ends("7.0", state="preempted", reason="SIGUSR1")
    assert job.ask("after", "7.0") == "requeue"


def test_a_scheduler_that_requeues_by_itself_is_stopped_at_the_third_start_in_vain(job):
    assert job.ask("before", "7.0") == "start"
    job.ends("7.0", state="failed", reason="rank 1: RuntimeError: NCCL")
    assert job.ask("before", "7.1") == "start"
    assert job.ask("before", "7.2") == "stop"


def test_a_run_that_is_done_does_not_start_and_a_longer_one_does(job, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7.0")
    assert job.ask("before", "7.0") == "start"
    train(job.config)
    assert job.ask("after", "7.0") == "done"
    assert job.ask("before", "8.0") == "done"
    assert job.ask("before", "8.0", f"max_steps={STEPS + 1}") == "start"


def test_a_job_that_could_not_continue_does_not_start(job, capsys):
    assert main(["before", "7.0", "5", str(job.config), "resume=never"]) == 2
    assert "override resume=never: resume: a job that is requeued has to continue" in capsys.readouterr().err
    assert not job.run.exists()
