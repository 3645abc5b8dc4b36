"""Metrics on ranks without samples, and modules back in the mode they were in."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distopt.data import MicroBatch
from distopt.errors import ConfigError
from distopt.evaluation import Evaluation
from distopt.objective import Objective
from tests.kit import run_distributed

CPU = torch.device("cpu")


class Mean(nn.Module):
    """Predicts x times a weight of 1; like some adapters, it does more than set the mode in `train`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.merged = False

    def train(self, mode: bool = True) -> Mean:
        self.merged = not mode
        return super().train(mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


def evaluation(batches: list[MicroBatch], metric: nn.Module, model: nn.Module | None = None) -> Evaluation:
    objective = Objective(model or Mean(), nn.functional.mse_loss)
    return Evaluation(objective, batches, {"m": metric}, precision="fp32", device=CPU)


def on_ranks(kind: str) -> float:
    """Rank 0 has two samples, the others a dummy each, which is far off."""
    wrappers, metrics = pytest.importorskip("torchmetrics.wrappers"), pytest.importorskip("torchmetrics")
    metric = {
        "plain": lambda: metrics.MeanSquaredError(),
        "wrapped": lambda: wrappers.LambdaInputTransformer(metrics.MeanSquaredError(), lambda p: p + 1),
        "lists": lambda: metrics.SpearmanCorrCoef(),
    }[kind]()
    x = torch.tensor([1.0, 2.0, 4.0])
    real, dummy = MicroBatch((x, x + 2), 3), MicroBatch((x * 1e6, -x), 0)
    rank = torch.distributed.get_rank()
    return evaluation([real if rank == 0 else dummy], metric).run()["m"]


@pytest.mark.parametrize(("kind", "expected"), [("plain", 4.0), ("wrapped", 1.0), ("lists", 1.0)])
def test_dummies_count_in_no_metric(kind, expected):
    assert run_distributed(on_ranks, kind, world=3, timeout=110) == pytest.approx([expected] * 3, rel=1e-5)


def leave_evaluation() -> tuple[bool, bool, bool]:
    model = nn.Sequential(Mean(), nn.Dropout())
    model[1].eval()
    metric = pytest.importorskip("torchmetrics").MeanSquaredError()
    x = torch.ones(2)
    evaluation([MicroBatch((x, x), 2)], metric, model).run()
    return model.training, model[0].merged, model[1].training


def test_afterwards_each_module_is_in_its_own_mode_again():
    assert run_distributed(leave_evaluation, world=1) == [(True, False, False)]


def compute(value: object) -> float:
    class Own(pytest.importorskip("torchmetrics").Metric):
        def update(self, prediction: torch.Tensor, target: torch.Tensor) -> None:
            pass

        def compute(self) -> object:
            if value is None:
                raise ZeroDivisionError("no samples")
            return value

    x = torch.ones(2)
    return evaluation([MicroBatch((x, x), 2)], Own()).run()["m"]


def compute_badly() -> str:
    with pytest.raises(ConfigError) as caught:
        compute(None)
    return str(caught.value)


def test_a_metric_whose_compute_raises_is_named():
    expected = "eval.metrics.m: Own.compute() raised ZeroDivisionError: no samples"
    assert run_distributed(compute_badly, world=1)[0].startswith(expected)


def test_a_metric_may_compute_a_plain_number():
    assert run_distributed(compute, 0.5, world=1) == [0.5]


class Narrow(nn.Module):
    """Takes samples of one width."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def notes_of_another_width() -> list[str]:
    batch = MicroBatch({"x": torch.ones(3, 5), "target": torch.ones(3, 1)}, 3)
    objective = Objective(Narrow(), nn.functional.mse_loss)
    with pytest.raises(RuntimeError) as caught:
        Evaluation(objective, [batch], {}, precision="fp32", device=CPU).rehearse()
    return caught.value.__notes__


def test_what_the_model_raises_of_a_first_batch_names_the_validation_data():
    [note] = run_distributed(notes_of_another_width, world=1)[0]
    assert note.startswith(
        "on the first batch of data.val, before training: x: Tensor of shape (3, 5), target"
    )
