"""metrics.jsonl: what is on disk, when, and after a resume."""

from __future__ import annotations

import json
import math
from pathlib import Path

from distopt.monitor.jsonl import JsonLines


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def write(path: Path, first_step: int, last_step: int) -> None:
    rows = JsonLines(path, first_step)
    for step in range(first_step + 1, last_step + 1):
        rows.log({"step": step})
    rows.close()


def test_a_row_is_on_disk_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    rows = JsonLines(tmp_path / "metrics.jsonl", 0)
    rows.log({"step": 1, "epoch": 0, "lr": {"default": 0.1}})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "step": 1,
        "epoch": 0,
        "lr": {"default": 0.1},
    }
    rows.close()


def test_a_resume_drops_the_rows_that_it_is_about_to_repeat(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 0, 7)
    write(path, 5, 9)
    assert steps(path) == [1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_a_start_from_nothing_drops_every_row(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 0, 7)
    write(path, 0, 2)
    assert steps(path) == [1, 2]


def test_a_resume_takes_a_torn_last_row_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "lo')
    write(path, 2, 3)
    assert steps(path) == [1, 2, 3]


def test_a_resume_works_where_the_file_was_lost(tmp_path: Path) -> None:
    write(tmp_path / "metrics.jsonl", 5, 6)
    assert steps(tmp_path / "metrics.jsonl") == [6]


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = JsonLines(path, 0)
    rows.log({"step": 1, "loss": math.nan, "eval": {"loss": -math.inf, "accuracy": 0.5}})
    rows.close()
    assert json.loads(path.read_text()) == {"step": 1, "loss": None, "eval": {"loss": None, "accuracy": 0.5}}
