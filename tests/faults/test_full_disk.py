"""A disk that is full for a while costs what cannot be written meanwhile, and never the training."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distopt import Runner, load_config
from distopt.callbacks import Callback, Run
from distopt.checkpoint import directory
from distopt.monitor import open_console, rank_log
from tests.kit import run_distributed
from tests.kit.disk import space_left
from tests.kit.distributed import RankError
from tests.runs import STEPS, rows, status, train, write_config
from tests.test_monitor_console import training_row
from tests.test_monitor_facade import monitor


def fill(filler: Path) -> None:
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass


class Full(Callback):
    """Fills the disk that a run is on after one step, and frees it after another."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last

    def on_step(self, run: Run) -> None:
        assert isinstance(run, Runner)
        if run.step in (self.first, self.last):
            run.saver.finish(must_succeed=False)  # written, or failed, before the disk changes under it
        filler = run.config.work_dir.with_name("filler")
        if run.world.is_main and run.step == self.first:
            fill(filler)
        if run.world.is_main and run.step == self.last:
            filler.unlink()


def _train_on_a_full_disk(path: Path) -> None:
    Runner(load_config(path), callbacks=[Full(first=5, last=9)]).train()


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"needs a small disk: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize(("strategy", "asynchronous"), [("ddp", False), ("fsdp", True)])
def test_training_goes_on_and_saves_again_when_there_is_space(small_disk, strategy, asynchronous):
    path = write_config(small_disk, strategy=strategy, checkpoint={"every": 2, "asynchronous": asynchronous})
    run_distributed(_train_on_a_full_disk, path)
    run = small_disk / "run"
    assert status(run)["state"] == "done"
    steps = [directory.read_progress(path).step for path in directory.committed(run)]
    assert steps == [4, 10, 12]  # those of 6 and 8 could not be written
    assert all(directory.damage(path, (0, 1)) is None for path in directory.committed(run))
    said = (run / "logs" / "rank0.log").read_text()
    assert said.count("training goes on, and the next checkpoint tries again") == 2
    assert "No space left on device" in said
    assert [row["step"] for row in rows(run)] == list(range(1, STEPS + 1))
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    drawn = [point.step for point in events.Scalars("loss/train")]
    assert drawn[:4] == [1, 2, 3, 4]
    assert drawn[-2:] == [11, 12]
    assert drawn == sorted(set(drawn))
    assert not list(run.glob("**/*.partial"))


def test_rows_that_the_disk_does_not_take_are_warned_of_once(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with monitor(tmp_path) as rows_to_all:
        for step in (10, 20, 30):
            rows_to_all.log(training_row(step))
    assert [record.message for record in caplog.records] == [
        "metrics.jsonl cannot be written, training goes on: [Errno 28] No space left on device"
    ]


def test_tensorboard_draws_on_once_there_is_space(tmp_path, caplog):
    rows_to_all = monitor(tmp_path)
    [events] = (tmp_path / "tensorboard").iterdir()
    rows_to_all.log(training_row(10))
    with space_left(events, 9):
        rows_to_all.log(training_row(20))  # torn, and completed later
        rows_to_all.log(training_row(30))
    rows_to_all.log(training_row(40))
    with space_left(events, 9):
        rows_to_all.log(training_row(50))
    rows_to_all.flush()
    assert _drawn(tmp_path) == [10, 20, 40, 50]
    with space_left(events, 9):
        rows_to_all.log(training_row(60))
        rows_to_all.close()
    assert _drawn(tmp_path) == [10, 20, 40, 50]
    assert caplog.text.count("tensorboard cannot be written, training goes on") == 1


def _drawn(work_dir: Path) -> list[int]:
    charts = EventAccumulator(str(work_dir / "tensorboard")).Reload()
    return [point.step for point in charts.Scalars("loss/train")]


def test_a_log_that_the_disk_does_not_take_is_no_reason_to_end(tmp_path, capsys):
    (tmp_path / "rank0.log").symlink_to("/dev/full")
    with rank_log(tmp_path, 0, open_console(0)):
        logging.getLogger("distopt").warning("still here")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("warning: still here\n", "")


def test_output_that_the_disk_does_not_take_is_no_reason_to_end(tmp_path, monkeypatch, caplog):
    with open("/dev/full", "w") as full, monkeypatch.context() as patch:  # noqa: PTH123
        patch.setattr(sys, "stdout", full)
        with rank_log(tmp_path, 0, open_console(0)):
            logging.getLogger("distopt").warning("still here")
        with suppress(OSError):
            full.close()
    said = (tmp_path / "rank0.log").read_text()
    assert "still here" in said
    assert said.count("standard output cannot be written, training goes on") == 1


def test_a_start_that_finds_the_disk_full_leaves_what_was_there(small_disk):
    path = write_config(small_disk)
    run_distributed(train, path)
    before = (small_disk / "run" / "config.yaml").read_text()
    fill(small_disk / "filler")
    with pytest.raises(RankError, match="No space left on device"):
        run_distributed(train, path, "max_steps=13")
    assert (small_disk / "run" / "config.yaml").read_text() == before
    (small_disk / "filler").unlink()
    run_distributed(train, path, "max_steps=13")
    assert [row["step"] for row in rows(small_disk / "run")] == list(range(1, 14))
