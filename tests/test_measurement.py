"""What a logged row has of each group and each rank, against what is computed apart from it."""

from __future__ import annotations

import json
import math
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distopt import ConfigError, Runner, flops, load_config
from distopt.callbacks import Callback, Run
from distopt.cli import main
from distopt.monitor import Throughput
from distopt.saving import Saver
from distopt.spread import Spread
from distopt.stopwatch import Stopwatch
from tests.kit import run_distributed
from tests.runs import rows, train, train_alone, whole, write_config

PER_GROUP = ("lr", "weight_decay", "momentum", "grad_norms", "param_norm", "update_ratio")
TAGS = ("lr", "wd", "momentum", "grad_norm", "param_norm", "update_ratio")
CPU = torch.device("cpu")


class Keep(Callback):
    """Keeps all parameters, as they are after each step."""

    def __init__(self) -> None:
        self.kept: list[dict[str, torch.Tensor]] = []

    def on_start(self, run: Run) -> None:
        self.kept.append(whole(run.model))

    def on_step(self, run: Run) -> None:
        self.kept.append(whole(run.model))


def train_and_keep(path: Path) -> list[dict[str, torch.Tensor]]:
    keep = Keep()
    Runner(load_config(path), callbacks=[keep]).train()
    return keep.kept


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[Path, list[dict[str, torch.Tensor]]]:
    """A run of one process, and its parameters before and after each step."""
    folder = tmp_path_factory.mktemp("alone")
    kept = train_and_keep(write_config(folder, strategy="single"))
    return folder / "run", kept


def test_norms_and_ratios_are_those_of_the_parameters_themselves(alone):
    run, kept = alone
    members = {
        group["name"]: [param["fqn"] for param in group["params"]]
        for group in json.loads((run / "plan.json").read_text())["groups"]
    }
    for row, before, after in zip(rows(run), kept, kept[1:], strict=False):
        for group, names in members.items():
            norm = math.hypot(*(before[name].norm().item() for name in names))
            update = math.hypot(*((after[name] - before[name]).norm().item() for name in names))
            assert row["param_norm"][group] == pytest.approx(norm, rel=1e-5)
            assert row["update_ratio"][group] == pytest.approx(update / norm, rel=1e-4)
        assert row["grad_norm"] == pytest.approx(math.hypot(*row["grad_norms"].values()), rel=1e-5)


@pytest.mark.parametrize(("strategy", "world"), [("ddp", 2), ("fsdp", 2), ("hsdp", 4)])
def test_sharded_or_not_the_groups_have_the_numbers_of_one_process(alone, tmp_path, strategy, world):
    kind = {"type": "hsdp", "shard_size": 2} if strategy == "hsdp" else strategy
    run_distributed(train, write_config(tmp_path, strategy=kind, max_steps=4, eval=None), world=world)
    for here, there in zip(rows(tmp_path / "run")[:3], rows(alone[0]), strict=False):
        for quantity in PER_GROUP[:3]:
            assert here[quantity].keys() == there[quantity].keys()
        for quantity in PER_GROUP[3:]:
            assert here[quantity] == pytest.approx(there[quantity], rel=1e-3)


def test_every_number_is_a_point_of_its_groups_curve(alone):
    run = alone[0]
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    for quantity, tag in zip(PER_GROUP, TAGS, strict=True):
        for group in rows(run)[0][quantity]:
            points = {point.step: point.value for point in events.Scalars(f"{tag}/{group}")}
            expected = {row["step"]: row[quantity][group] for row in rows(run)}
            assert points == pytest.approx(expected, rel=1e-6)


def test_only_what_is_asked_for_is_measured_of_groups(tmp_path):
    train_alone(write_config(tmp_path, log={"every": 4, "per_group": ["lr"]}))
    row = rows(tmp_path / "run")[0]
    assert [quantity for quantity in PER_GROUP if quantity in row] == ["lr"]
    assert row["grad_norm"] > 0


def test_the_training_is_the_same_whatever_is_measured(alone, tmp_path):
    kept = train_and_keep(write_config(tmp_path, strategy="single", log={"every": 100, "per_group": []}))
    assert all(torch.equal(kept[-1][name], value) for name, value in alone[1][-1].items())


def test_an_unknown_quantity_is_told_with_the_nearest(tmp_path, capsys):
    path = write_config(tmp_path, log={"per_group": ["lr", "grad_norms"]})
    assert main(["check", str(path)]) == 2
    message = capsys.readouterr().err
    assert "log.per_group.1: wrong value" in message
    assert "did you mean: grad_norm?" in message


def test_a_step_is_taken_apart_and_memory_is_told(alone):
    row = rows(alone[0])[-1]
    assert list(row["time"]) == ["data", "forward", "backward", "norms", "optimizer", "other"]
    assert all(seconds > 0 for seconds in row["time"].values())
    assert 0 <= row["perf"]["data_wait"] <= 1
    assert 0.01 < row["memory"]["rss"] < 100


def test_a_checkpoint_tells_how_long_it_took_at_its_own_step_though_it_is_written_meanwhile(alone):
    saved = rows(alone[0], kind="checkpoint")
    assert [row["step"] for row in saved] == [4, 8, 12]
    assert [row["epoch"] for row in saved] == [rows(alone[0])[step - 1]["epoch"] for step in (4, 8, 12)]
    assert all(row["checkpoint"]["seconds"] >= 0 <= row["checkpoint"]["held"] for row in saved)


def test_a_checkpoint_that_is_finished_at_a_logged_step_is_no_part_of_the_next(tmp_path, monkeypatch):
    finish, passed = Saver.finish, 0.0

    def finish_slowly(saver: Saver, *, must_succeed: bool) -> None:
        nonlocal passed
        passed += 1000.0
        finish(saver, must_succeed=must_succeed)

    monkeypatch.setattr(Saver, "finish", finish_slowly)
    monkeypatch.setattr(Saver, "is_written", property(lambda saver: saver.begun is not None))
    clock = partial(Throughput, clock=lambda: time.perf_counter() + passed)
    monkeypatch.setattr("distopt.runner.Throughput", clock)
    train_alone(write_config(tmp_path, strategy="single", max_steps=6, eval=None, checkpoint={"every": 2}))
    assert passed > 2000
    assert all(row["perf"]["step_time"] < 100 for row in rows(tmp_path / "run"))


def observe(spread: Spread, *totals: float, times: int) -> dict[str, float]:
    parts = np.array([[0.1, total - 0.1] for total in totals])
    return [spread.observe(parts, step_time=2.0) for _ in range(times)][-1]


def test_the_slowest_and_the_fastest_rank_are_named():
    found = observe(Spread(["a", "a", "b"], ["data", "forward"]), 0.5, 0.25, 1.0, times=1)
    assert found == pytest.approx({"slowest": 1.0, "fastest": 0.25, "slowest_rank": 2, "fastest_rank": 1})


def test_a_rank_that_holds_up_the_others_is_told_of_once(caplog):
    spread = Spread(["a", "a", "b"], ["data", "forward"])
    observe(spread, 0.5, 0.25, 1.5, times=9)
    assert not caplog.records
    observe(spread, 0.5, 0.25, 1.5, times=20)
    assert [record.message for record in caplog.records] == [
        "rank 2 (b) holds up the others: forward takes it 1.4 s a step, and 0.4 s the median rank"
    ]


def test_a_rank_that_is_slow_again_and_again_is_told_of_once(caplog):
    spread = Spread(["a", "b"], ["data", "forward"])
    for _ in range(3):
        observe(spread, 0.5, 1.5, times=12)
        observe(spread, 0.5, 0.5, times=1)
    observe(spread, 1.5, 0.5, times=12)
    assert [record.message.split(" holds")[0] for record in caplog.records] == ["rank 1 (b)", "rank 0 (a)"]


def test_ranks_that_are_slow_by_turns_are_not_told_of(caplog):
    spread = Spread(["a", "b", "c"], ["data", "forward"])
    for _ in range(20):
        observe(spread, 1.5, 0.25, 0.5, times=1)
        observe(spread, 0.25, 1.5, 0.5, times=1)
    assert not caplog.records


def test_parts_that_come_again_are_added_up():
    watch = Stopwatch(CPU, "data")
    for part in ("forward", "backward", "forward", "backward", "end"):
        watch.mark(part)
    watch._marks = [(part, float(now)) for now, (part, _) in enumerate(watch._marks)]
    assert watch.seconds() == {"data": 1.0, "forward": 2.0, "backward": 2.0}


def test_flops_of_a_linear_layer_are_those_of_its_products():
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    batch = torch.randn(32, 8), torch.randn(32, 4)
    forward = 2 * 32 * (8 * 16 + 16 * 4)
    not_needed = 2 * 32 * 8 * 16  # the gradient of the input
    assert flops.of_batch(model, torch.nn.MSELoss(), batch) == 3 * forward - not_needed


def test_counting_flops_leaves_the_model_and_the_random_state_alone():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout())
    batch = torch.randn(8, 4), torch.randn(8, 4)
    state, random_state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    assert isinstance(flops.of_batch(model, torch.nn.MSELoss(), batch), float)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


class Looks(torch.nn.Linear):
    """Looks at its values, which the meta device does not have."""

    def __init__(self) -> None:
        super().__init__(9, 9)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        output = super().forward(windows.float())
        return output.square().mean() if windows.sum().item() > 0 else output.mean()


def test_why_the_share_of_the_peak_is_not_known_is_in_the_log(tmp_path, monkeypatch):
    monkeypatch.setattr(flops, "peak", lambda device, precision: 1e12)
    model, optimizer = {"type": f"{__name__}:Looks"}, {"type": "SGD", "lr": 0.1}
    path = write_config(tmp_path, model=model, optimizer=optimizer, max_steps=1, eval=None)
    train_alone(path, "strategy=single")
    assert "mfu" not in rows(tmp_path / "run")[-1]["perf"]
    log = (tmp_path / "run" / "logs" / "rank0.log").read_text()
    assert "mfu is not known: RuntimeError: Tensor.item() cannot be called on meta tensors" in log


@pytest.mark.parametrize(
    ("name", "precision", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989e12),
        ("NVIDIA H100 PCIe", "bf16", 756e12),
        ("NVIDIA A100-SXM4-80GB", "tf32", 156e12),
        ("NVIDIA L40", "bf16", None),
        ("NVIDIA H200", "fp32", None),
    ],
)
def test_the_peak_of_a_gpu_is_known_by_its_name(name, precision, expected):
    assert flops.peak_of(name, precision) == expected


def test_the_share_of_the_peak_is_told_where_it_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr(flops, "peak", lambda device, precision: 1e12)  # of a GPU that is not here
    train_alone(write_config(tmp_path, strategy="single", max_steps=2, eval=None))
    perf = rows(tmp_path / "run")[-1]["perf"]
    assert perf["mfu"] == pytest.approx(perf["tflops_per_rank"])
    assert perf["mfu"] > 0


def test_a_quantity_is_no_group_of_words(tmp_path):
    with pytest.raises(ConfigError, match=r"log\.per_group"):
        load_config(write_config(tmp_path, log={"per_group": "lr"}))
