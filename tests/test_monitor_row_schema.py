"""The JSON Schema of a row: what runs write holds against it, what is wrong does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from distopt.callbacks import Callback, Run
from distopt.cli import main
from distopt.monitor.row_schema import row_schema
from tests.runs import CONFIG, rows, train_alone, write_config

SCHEMA = row_schema()
ROOT = Path(__file__).parents[1]
TRAINING: dict[str, Any] = {
    "step": 1,
    "epoch": 0,
    "loss": 1.5,
    "lr": {"default": 0.1},
    "weight_decay": {"default": 0},
    "grad_norm": None,
    "perf": {"step_time": 0.1, "samples_per_second": 10.0},
    "time": {"forward": 0.05},
    "memory": {"rss": 1.0},
}
EVALUATION: dict[str, Any] = {"step": 1, "epoch": 0, "eval": {"loss": 1.0}, "best": {}}


class Adding(Callback):
    """Adds all that a callback may."""

    def on_log(self, run: Run, row: dict[str, Any]) -> None:
        row |= {"temperature": {"gpu": 61, "cpu": None}, "note": "warm", "shape": [1, 2], "one": 1.0}

    def on_eval(self, run: Run, row: dict[str, Any]) -> None:
        row["calibration"] = 0.5


def errors(row: dict[str, Any]) -> list[str]:
    return [error.message for error in Draft202012Validator(SCHEMA).iter_errors(row)]


def errors_of_run(folder: Path) -> list[str]:
    return [message for row in rows(folder / "run", "step") for message in errors(row)]


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "--metrics"]) == 0
    assert json.loads(capsys.readouterr().out) == SCHEMA


def test_every_row_of_a_run_is_valid(tmp_path: Path) -> None:
    config = write_config(tmp_path, callbacks=[{"type": "tests.test_monitor_row_schema:Adding"}])
    train_alone(config, "ema={decay: 0.9, evaluate: true}")
    assert rows(tmp_path / "run", "calibration")
    assert errors_of_run(tmp_path) == []


def test_every_row_of_a_run_with_numbers_and_a_loss_scale_of_its_own_is_valid(tmp_path: Path) -> None:
    points = {"type": "tests.components:Points", "length": 64, "form": "mapping"}
    config = write_config(
        tmp_path,
        model={"type": "tests.components:OwnLoss"},
        data={**CONFIG["data"], "train": points, "val": points},
        precision="fp16",
    )
    train_alone(config, "optimizer={type: SGD, lr: 0.1}")
    assert rows(tmp_path / "run", "loss_scale")
    assert rows(tmp_path / "run", "train")
    assert errors_of_run(tmp_path) == []


def test_every_row_of_a_run_that_leaves_steps_out_is_valid(tmp_path: Path) -> None:
    config = write_config(tmp_path, model={"type": "tests.components:Diverging"})
    train_alone(
        config, "optimizer={type: SGD, lr: 0.1}", "max_steps=5", "data.micro_batch_size=16", "eval=null"
    )
    assert rows(tmp_path / "run", "skipped")
    assert rows(tmp_path / "run")[-1]["loss"] is None
    assert errors_of_run(tmp_path) == []


@pytest.mark.parametrize(
    "change",
    [
        {"momentum": {"default": 0.9}},
        {"grad_norms": {"default": None}},
        {"perf": {**TRAINING["perf"], "data": 0.01, "forward": 0.02}},
        {"tags": ["a", 1]},
    ],
)
def test_what_rows_may_have_more_of_is_valid(change: dict[str, Any]) -> None:
    assert errors({**TRAINING, **change}) == []


@pytest.mark.parametrize(
    "row",
    [
        {**TRAINING, "step": 1.5},
        {**TRAINING, "epoch": -1},
        {**TRAINING, "loss": "1.5"},
        {**TRAINING, "loss": {"default": 1.5}},
        {**TRAINING, "lr": 0.1},
        {**TRAINING, "lr": {"default": "0.1"}},
        {**TRAINING, "perf": {"step_time": 0.1}},
        {**TRAINING, "perf": {**TRAINING["perf"], "data": "0.01"}},
        {**TRAINING, "skipped": 0},
        {**TRAINING, "nested": {"a": {"b": 1}}},
        {**EVALUATION, "eval": 1.0},
        {**EVALUATION, "best": None},
        {**TRAINING, **EVALUATION},
        {**TRAINING, "eval": {"loss": 1.0}},
        {"step": 1, "epoch": 0},
        *(
            {key: value for key, value in TRAINING.items() if key != left}
            for left in TRAINING
            if left not in ("lr", "weight_decay")
        ),
        *({key: value for key, value in EVALUATION.items() if key != left} for left in EVALUATION),
    ],
)
def test_what_is_no_row_is_not_valid(row: dict[str, Any]) -> None:
    assert errors(row)


def test_every_key_stands_in_the_documentation() -> None:
    section = (ROOT / "docs/monitoring.md").read_text().split("## metrics.jsonl")[1].split("\n## ")[0]
    assert [key for key in SCHEMA["properties"] if f"`{key}`" not in section] == []
