"""Event files, read back as TensorBoard reads them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from distopt.monitor.tensorboard import TensorBoard, charts, scalars

GROUPS = [
    {
        "name": name,
        "rules": rules,
        "options": {"lr": 1e-3, "weight_decay": 0.1},
        "why": why,
        "params": [{"fqn": f"{name}.weight", "aliases": aliases, "shape": [4], "numel": 4}],
    }
    for name, rules, why, aliases in (
        ("embedding", [], {}, ["head.weight"]),
        ("norm", ["norm"], {"weight_decay": "0.1 × 0 (norm_decay_mult) = 0"}, []),
    )
]


def row(step: int, loss: float = 1.0) -> dict[str, Any]:
    return {
        "step": step,
        "epoch": 0,
        "loss": loss,
        "lr": {"default": 1e-3, "norm": 1e-4},
        "weight_decay": {"default": 0.1, "norm": 0.0},
        "grad_norm": 0.5,
        "perf": {"step_time": 0.02, "tokens_per_second": 1e5},
    }


def record(directory: Path, first_step: int, last_step: int, loss: float = 1.0) -> None:
    writer = TensorBoard(directory, first_step)
    writer.describe("max_steps: 10", GROUPS)
    for step in range(first_step + 1, last_step + 1):
        writer.log(row(step, loss))
    writer.close()


def read(directory: Path) -> EventAccumulator:
    return EventAccumulator(str(directory)).Reload()


def text(directory: Path, tag: str) -> list[tuple[int, str]]:
    events = read(directory).Tensors(tag)
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in events]


def test_every_number_of_a_row_has_its_tag() -> None:
    tags = {
        tag for each in (row(1), {"step": 1, "epoch": 0, "eval": {"loss": 2.0}}) for tag, _ in scalars(each)
    }
    assert tags == {
        "loss/train",
        "lr/default",
        "lr/norm",
        "wd/default",
        "wd/norm",
        "grad_norm/all",
        "perf/step_time",
        "perf/tokens_per_second",
        "eval/loss",
    }


def test_momentum_is_recorded_per_group_where_the_row_has_it() -> None:
    assert dict(scalars({"step": 1, "momentum": {"default": 0.9}})) == {"momentum/default": 0.9}


def test_a_number_that_a_callback_adds_is_a_curve_of_its_name_and_what_is_none_is_no_point() -> None:
    added = {"longest": 2, "note": "text", "tags": [1, 2], "calibration": {"error": 0.5, "slope": None}}
    assert dict(scalars({"step": 1, "epoch": 0, **added})) == {"longest": 2, "calibration/error": 0.5}


def test_points_stand_at_the_step_of_their_row(tmp_path: Path) -> None:
    record(tmp_path, 0, 3)
    points = read(tmp_path).Scalars("lr/norm")
    assert [(point.step, point.value) for point in points] == [(n, pytest.approx(1e-4)) for n in (1, 2, 3)]


def test_a_resume_leaves_no_step_twice(tmp_path: Path) -> None:
    record(tmp_path, 0, 8, loss=1.0)
    record(tmp_path, 5, 10, loss=2.0)
    points = [(point.step, point.value) for point in read(tmp_path).Scalars("loss/train")]
    assert points == [(step, 1.0 if step <= 5 else 2.0) for step in range(1, 11)]


def test_a_start_from_nothing_hides_what_was_there(tmp_path: Path) -> None:
    record(tmp_path, 0, 8, loss=1.0)
    record(tmp_path, 0, 2, loss=2.0)
    points = [(point.step, point.value) for point in read(tmp_path).Scalars("loss/train")]
    assert points == [(1, 2.0), (2, 2.0)]


def test_flush_puts_everything_on_disk(tmp_path: Path) -> None:
    writer = TensorBoard(tmp_path, 0)
    writer.log(row(1))
    writer.flush()
    assert len(read(tmp_path).Scalars("loss/train")) == 1
    writer.close()


def test_the_config_is_kept_as_text_at_the_step_from_which_it_holds(tmp_path: Path) -> None:
    record(tmp_path, 0, 8)
    record(tmp_path, 5, 8)
    assert text(tmp_path, "run/config") == [(step, "```yaml\nmax_steps: 10\n```") for step in (0, 6)]


def test_the_groups_are_kept_as_a_table(tmp_path: Path) -> None:
    record(tmp_path, 0, 1)
    ((_, table),) = text(tmp_path, "run/groups")
    head, rule, embedding, norm, *members = table.splitlines()
    assert len({line.count("|") for line in (head, rule, embedding, norm)}) == 1
    assert embedding.endswith("| base values |")
    assert norm.endswith("| norm |")
    why = "    weight_decay: 0.1 × 0 (norm_decay_mult) = 0"
    lines = ["embedding", "    embedding.weight = head.weight", "norm", why, "    norm.weight"]
    assert members == ["", "```", *lines, "```"]


def test_one_chart_lays_all_groups_over_each_other(tmp_path: Path) -> None:
    record(tmp_path, 0, 2)
    (event,) = read(tmp_path).Tensors("custom_scalars__config__")
    assert event.step == 0  # so that no resume purges it
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    lines = {
        f"{category.title}/{chart.title}": list(chart.multiline.tag)
        for category in layout.category
        for chart in category.chart
    }
    assert lines == {
        "loss/loss": ["^loss/train$", r"^eval/(ema\.)?loss$"],
        "optimizer/lr": ["^lr/default$", "^lr/norm$"],
        "optimizer/wd": ["^wd/default$", "^wd/norm$"],
    }


def test_more_groups_than_a_chart_can_tell_apart_take_several() -> None:
    optimizer = charts([f"lr/layer.{i}" for i in range(12)])["optimizer"]
    assert {title: len(lines) for title, lines in optimizer.items()} == {
        "lr (1 of 3)": 5,
        "lr (2 of 3)": 5,
        "lr (3 of 3)": 2,
    }


@pytest.mark.slow
def test_an_installed_tensorflow_is_not_loaded(tmp_path: Path) -> None:
    """TensorBoard would load it for its file functions: 5 s and a screen of messages."""
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('tensorflow was loaded')\n")
    code = (
        "import pathlib\n"
        "from distopt.monitor import Session\n"
        "from distopt.monitor.tensorboard import TensorBoard\n"
        "Session(pathlib.Path('.'), {'lr': 0.1}).end(succeeded=True)\n"
        "writer = TensorBoard(pathlib.Path('.'), 0)\n"
        "writer.text('run/config', 'max_steps: 1')\n"
        "writer.log({'step': 1, 'epoch': 0, 'loss': 1.0})\n"
        "writer.close()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
