"""The Monitor: one row in, everything that records or shows rows fed."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distopt.monitor import Monitor, open_console
from tests.test_monitor_console import GROUPS, evaluation_row, training_row


def monitor(work_dir: Path, rank: int = 0, first_step: int = 0) -> Monitor:
    return Monitor(
        work_dir,
        open_console(rank),
        rank=rank,
        first_step=first_step,
        last_step=600,
        groups=GROUPS,
        config="max_steps: 600",
        baselines={"bigram": 2.3812},
    )


def test_a_row_reaches_the_file_the_charts_and_the_user(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with monitor(tmp_path) as both:
        both.log(training_row(10))
        both.log(evaluation_row(10))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [training_row(10), evaluation_row(10)]
    charts = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert charts.Scalars("eval/loss")[0].value == pytest.approx(1.93214)
    assert capsys.readouterr().out.count("step  10") == 2


def test_other_ranks_write_and_print_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with monitor(tmp_path, rank=1) as silent:
        silent.log(training_row(10))
        silent.flush()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


def test_a_resume_repeats_no_step_anywhere(tmp_path: Path) -> None:
    for first_step, last_step in ((0, 30), (20, 50)):
        with monitor(tmp_path, first_step=first_step) as part:
            for step in range(first_step + 10, last_step + 1, 10):
                part.log(training_row(step))
    rows = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    charts = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert rows == [point.step for point in charts.Scalars("lr/norm")] == [10, 20, 30, 40, 50]


def test_flush_shows_the_charts_so_far(tmp_path: Path) -> None:
    with monitor(tmp_path) as running:
        running.log(training_row(10))
        running.flush()
        charts = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
        assert len(charts.Scalars("loss/train")) == 1


def test_a_full_disk_is_reported_once_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with caplog.at_level(logging.WARNING), monitor(tmp_path) as full:
        full.log(training_row(10))
        full.log(training_row(20))
    assert caplog.text.count("metrics.jsonl cannot be written, training goes on") == 1
    charts = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [point.step for point in charts.Scalars("loss/train")] == [10, 20]
