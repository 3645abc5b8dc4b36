"""Steps whose loss or gradient is no finite number are left out, and said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import Dataset

from distopt import build_optimizer, parallel
from distopt.checkpoint import export
from distopt.config import StrategyConfig
from distopt.data import MicroBatch, Step
from distopt.gradients import GradientStep
from distopt.objective import Objective
from tests.kit import run_distributed
from tests.runs import rows, status, train_alone, write_config

CPU = torch.device("cpu")
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "fused": {"type": "AdamW", "lr": 0.1, "fused": True},
    "foreach": {"type": "AdamW", "lr": 0.1, "foreach": True},
    "momentum": {"type": "SGD", "lr": 0.1, "momentum": 0.9},
    "composite": {
        "type": "AdamW",
        "lr": 0.1,
        "fused": True,
        "paramwise_cfg": {"custom_keys": {"head": {"type": "SGD", "lr": 0.1, "momentum": 0.9}}},
    },
}


class Fragile(nn.Module):
    """Its batches say what is to go wrong."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(4, 1)

    def forward(self, x: Tensor, wrong: str) -> Tensor:
        spoiled = x * float("nan") if wrong == "input" else x
        y = self.head(self.norm(spoiled)).square().mean()
        if wrong == "loss":
            return y + float("inf")  # its gradient is finite
        return y + (y - y.detach()) * 1e38 * 1e38 if wrong == "gradient" else y


def after_steps(steps: list[tuple[int, str]], strategy: str, optimizer: str, on_device: bool) -> list[Tensor]:
    """All values and state after steps, each by its seed and what is wrong with rank 1's part of it."""
    model = Fragile()
    wrapped = parallel.wrap(model, StrategyConfig(type=strategy), CPU)
    stepped = build_optimizer(wrapped, OPTIMIZERS[optimizer])
    step = GradientStep(Objective(wrapped), stepped, precision="fp32", clip=None, max_skipped=3, device=CPU)

    def batch(seed: int, wrong: str) -> Step:
        rows = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(seed))[dist.get_rank()]
        return Step([MicroBatch((rows, wrong if dist.get_rank() else ""), 5, (seed,))], 10)

    step.rehearse(batch(0, ""))
    step.skips.asks = not on_device  # as for a GPU, on the CPU
    for each in steps:
        step.take(batch(*each))
    state = [value for of_one in stepped.state.values() for value in of_one.values()]
    return [whole(value) for value in (*model.state_dict().values(), *state) if value.is_floating_point()]


def whole(value: Tensor) -> Tensor:
    return (value.full_tensor() if isinstance(value, DTensor) else value).clone()


def without_and_with(wrong: str, strategy: str, optimizer: str, on_device: bool) -> list[list[Tensor]]:
    good = [(1, ""), (4, "")]
    bad = [(1, ""), (2, wrong), (3, wrong), (4, "")]
    return [after_steps(steps, strategy, optimizer, on_device) for steps in (good, bad)]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("wrong", ["input", "loss", "gradient"])
def test_a_step_with_something_wrong_on_one_rank_leaves_no_trace(strategy, optimizer, wrong):
    for without, with_it in run_distributed(without_and_with, wrong, strategy, optimizer, False):
        assert all(map(torch.equal, without, with_it))
        assert len(without) == len(with_it) >= 10


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("wrong", ["input", "loss", "gradient"])
def test_it_leaves_none_either_where_only_the_device_knows(strategy, wrong):
    for without, with_it in run_distributed(without_and_with, wrong, strategy, "fused", True):
        assert all(map(torch.equal, without, with_it))


def fragile_run(folder: Path, bad: list[int], **changes: Any) -> Path:
    """Ends after 12 steps of 16 samples; those that are `bad` have a loss that is no number."""
    train_data = {"type": "tests.test_skips:Spoiled", "bad": bad}
    data = {"train": train_data, "batch_size": 16, "micro_batch_size": 1}
    model = {"type": "tests.test_skips:Scaled"}
    return write_config(
        folder, data=data, model=model, eval=None, optimizer=SGD, param_scheduler=[], **changes
    )


SGD = {"type": "SGD", "lr": 0.1}


class Spoiled(Dataset[Tensor]):
    """64 ones, some of which are no numbers."""

    def __init__(self, bad: list[int]) -> None:
        self.values = torch.ones(64)
        self.values[bad] = float("nan")

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> Tensor:
        return self.values[index]


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return (self.scale * x).square().mean()


def test_a_run_goes_on_and_says_which_samples_and_parameters_it_were(tmp_path, caplog):
    train_alone(fragile_run(tmp_path, [17], log={"every": 6}))
    assert status(tmp_path / "run")["state"] == "done"
    # one in each pass of four steps
    assert [row.get("skipped", 0) for row in rows(tmp_path / "run")] == [0, 2, 3]
    told = "no finite loss for samples 17 of rank 0; no finite gradient of scale (default)"
    assert [told in message for message in caplog.messages if "left out" in message] == [True, True]


def test_the_row_of_a_step_left_out_has_the_loss_scale_that_it_used(tmp_path):
    train_alone(fragile_run(tmp_path, [*range(64)], precision="fp16", max_steps=3))
    assert [row["loss_scale"] for row in rows(tmp_path / "run")] == [2.0**16, 2.0**15, 2.0**14]


def test_too_many_in_a_row_end_the_run_and_leave_sound_checkpoints(tmp_path):
    path = fragile_run(tmp_path, [*range(64)], max_skipped=3, checkpoint={"every": 1})
    with pytest.raises(
        FloatingPointError, match=r"1 of the steps up to 4 left out .*4 in a row are more than max_skipped 3"
    ):
        train_alone(path)
    assert status(tmp_path / "run")["state"] == "failed"
    assert export.weights(tmp_path / "run" / "checkpoints" / "step_00000003")["scale"] == 1.0
