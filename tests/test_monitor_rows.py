"""Reading a metrics.jsonl that another process writes: torn, purged, replaced, not there yet."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from distopt.monitor.jsonl import JsonLines
from distopt.monitor.rows import NewRows, newest_rows


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def training(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "epoch": 0, "loss": 1.0 / step, **more}


def evaluation(step: int) -> dict[str, Any]:
    return {"step": step, "epoch": 0, "eval": {"loss": 2.0 / step}, "best": {"loss": 2.0 / step}}


def log(path: Path, *rows: dict[str, Any], first_step: int = 1) -> None:
    """Writes as a run does that starts after `first_step`."""
    lines = JsonLines(path, first_step)
    for row in rows:
        lines.log(row)
    lines.close()


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def steps(rows: NewRows) -> list[int]:
    return [row["step"] for row in rows.read()]


def test_the_newest_rows_of_both_kinds_are_found_in_whatever_order(path: Path) -> None:
    log(path, training(1), evaluation(1), training(2), training(3))
    assert newest_rows(path) == (training(3), evaluation(1))
    append(path, json.dumps(evaluation(3)) + "\n")
    assert newest_rows(path) == (training(3), evaluation(3))


def test_an_evaluation_that_is_far_back_is_found(path: Path) -> None:
    log(path, training(1), evaluation(1), *(training(step, note="x" * 1000) for step in range(2, 500)))
    assert newest_rows(path)[1] == evaluation(1)


def test_rows_longer_than_a_block_are_whole(path: Path) -> None:
    long = training(3, lr={f"layer.{i}.weight": 0.1 for i in range(20_000)})
    log(path, training(1), evaluation(1), long)
    assert newest_rows(path) == (long, evaluation(1))


@pytest.mark.parametrize("torn", ['{"step": 3, "epo', "\0\0\0", "[]\n", '{"step": null}\n', "\n"])
def test_what_is_no_row_is_passed_over(path: Path, torn: str) -> None:
    log(path, training(1), evaluation(1), training(2))
    append(path, torn)
    assert newest_rows(path) == (training(2), evaluation(1))


def test_without_a_file_there_are_no_rows(path: Path) -> None:
    assert newest_rows(path) == ({}, {})


def test_null_is_a_number_that_was_not_finite_except_where_none_is_known(path: Path) -> None:
    log(path, {**training(1), "loss": math.nan, "grad_norm": None, "train": {"hits": math.inf}})
    row, _ = newest_rows(path)
    assert math.isnan(row["loss"])
    assert math.isnan(row["train"]["hits"])
    assert row["grad_norm"] is None


def test_new_rows_begin_with_the_last_ten_and_come_once(path: Path) -> None:
    log(path, *(training(step) for step in range(1, 31)))
    rows = NewRows(path)
    assert steps(rows) == [*range(21, 31)]
    assert steps(rows) == []
    append(path, json.dumps(training(31)) + "\n" + json.dumps(evaluation(31)) + "\n")
    assert steps(rows) == [31, 31]


def test_ten_rows_of_hundreds_of_groups_are_as_good_as_others(path: Path) -> None:
    lr = {f"backbone.layer_{i:03}": 1e-3 for i in range(2000)}
    log(path, *(training(step, lr=lr) for step in range(1, 31)))
    assert steps(NewRows(path)) == [*range(21, 31)]


def test_of_a_file_that_was_not_there_at_first_every_row_comes(path: Path) -> None:
    rows = NewRows(path)
    assert steps(rows) == []
    log(path, *(training(step) for step in range(1, 31)))
    assert steps(rows) == [*range(1, 31)]


def test_a_torn_row_comes_when_it_is_whole(path: Path) -> None:
    log(path, training(1))
    rows = NewRows(path)
    line = json.dumps(training(2)) + "\n"
    append(path, line[:20])
    assert steps(rows) == [1]
    append(path, line[20:])
    assert steps(rows) == [2]


def test_after_a_restart_what_is_recorded_anew_comes_and_what_was_kept_does_not(path: Path) -> None:
    log(path, *(training(step) for step in range(1, 8)))
    rows = NewRows(path)
    assert steps(rows) == [*range(1, 8)]
    log(path, *(training(step, start=2) for step in range(6, 10)), first_step=5)
    assert steps(rows) == [6, 7, 8, 9]


def test_a_restart_seen_before_its_first_row_changes_nothing(path: Path) -> None:
    log(path, *(training(step) for step in range(1, 8)))
    rows = NewRows(path)
    rows.read()
    log(path, first_step=5)
    assert steps(rows) == []
    append(path, json.dumps(training(6, start=2)) + "\n")
    assert steps(rows) == [6]


def test_after_a_start_from_nothing_all_rows_come(path: Path) -> None:
    log(path, *(training(step) for step in range(1, 8)))
    rows = NewRows(path)
    rows.read()
    log(path, training(1, start=2), first_step=0)
    assert steps(rows) == [1]


def test_a_file_purged_to_before_where_reading_began_goes_on_with_its_last_rows(path: Path) -> None:
    log(path, *(training(step, note="x" * 10_000) for step in range(1, 200)))
    rows = NewRows(path)
    rows.read()
    log(path, training(21), first_step=20)
    assert steps(rows)[-1] == 21
    append(path, json.dumps(training(22)) + "\n")
    assert steps(rows) == [22]


def test_rows_of_another_kind_are_left_out(path: Path) -> None:
    log(path, training(1), {"step": 1, "epoch": 0, "other": {"seconds": 1.0}})
    assert steps(NewRows(path)) == [1]
