"""What a user's own code can do wrong: one message in terms of that code, status 2, nothing written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from distopt import cli
from distopt import train as worker
from tests.runs import write_config

HERE = __name__
pytestmark = pytest.mark.filterwarnings("ignore:Unable to enable fault handler")  # pytest has taken stderr


class Mappings(Dataset):
    """Samples with `x` and `y`; from `odd` on they have `z`, too."""

    def __init__(self, odd: int | None = None, fails: int | None = None) -> None:
        self.odd, self.fails = odd, fails

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if index == self.fails:
            raise KeyError("label")
        sample = {"x": torch.ones(2), "y": torch.ones(())}
        return sample | ({"z": torch.ones(())} if self.odd is not None and index >= self.odd else {})


class Nothing(IterableDataset):
    def __iter__(self):
        return iter(())


class Net(nn.Module):
    """Takes `x` and `y`; what it returns is named by `result`."""

    def __init__(self, result: str = "scalar") -> None:
        super().__init__()
        self.linear = nn.Linear(2, 1)
        self.result = result

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        error = (self.linear(x)[:, 0] - y).square()
        return {
            "scalar": error.mean(),
            "vector": error,
            "nothing": None,
            "logits": {"logits": error},
            "constant": error.mean().detach(),
            "negative": {"loss": error.mean(), "num_items": -1},
            "uncounted": {"loss": error.mean(), "num_items": error.sum() * float("nan")},
        }[self.result]


class Takes(nn.Module):
    """Its forward has other names than the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 1)

    def forward(self, image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return self.linear(image).mean() + label.mean()


class Partly(Net):
    """Has a layer that has no part in its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.pooler = nn.Linear(2, 2)


def broken_collate(samples: list[Any]) -> Any:
    raise IndexError("no such column")


def model(**arguments: Any) -> dict[str, Any]:
    return {"type": f"{HERE}:Net", **arguments}


def data(**changes: Any) -> dict[str, Any]:
    train = {"type": f"{HERE}:Mappings"}
    return {"data": {"train": train, "batch_size": 16, **changes}}


BAD = {
    "nothing in a stream": (
        data(train={"type": f"{HERE}:Nothing"}),
        "data.train: the dataset yields nothing",
        "",
    ),
    "other keys later": (
        data(train={"type": f"{HERE}:Mappings", "odd": 1}),
        "data.train: sample 1 has other keys than sample 0",
        "z: Tensor()",
    ),
    "a dataset that raises": (
        data(train={"type": f"{HERE}:Mappings", "fails": 1}),
        "data.train: Mappings.__getitem__(1) raised KeyError: 'label' (",
        "test_bad_parts.py:",
    ),
    "a collate that raises": (
        data(collate={"type": f"{HERE}:broken_collate"}),
        "data.collate: broken_collate, given samples 0, 1, 2, 3, 4, 5, 6, 7, … (16 in all), "
        "raised IndexError: no such column (",
        "test_bad_parts.py:",
    ),
    "forward takes other keys": (
        {"model": {"type": f"{HERE}:Takes"}},
        "model: Takes.forward does not take what a batch has",
        "keys x, y",
    ),
    "no loss": ({"model": model(result="nothing")}, "model: Net.forward returned no scalar loss", "NoneType"),
    "only logits": (
        {"model": model(result="logits")},
        "model: Net.forward returned no scalar loss",
        "loss: {type",
    ),
    "a loss per sample": (
        {"model": model(result="vector")},
        "returned no scalar loss",
        "Tensor of shape (16,)",
    ),
    "a loss without a gradient": (
        {"model": model(result="constant")},
        "model: Net.forward returned a loss without a gradient",
        "Tensor of shape ()",
    ),
    "less than no items": (
        {"model": model(result="negative")},
        "model: returned a num_items that is no number of items",
        "0 or more",
    ),
    "no number of items": (
        {"model": model(result="uncounted")},
        "model: returned a num_items that is no number of items",
        "0 or more",
    ),
    "an unused parameter": (
        {"model": {"type": f"{HERE}:Partly"}},
        "strategy: ddp waits for gradients of every parameter",
        "given:    pooler.weight, pooler.bias",
    ),
    "a loss without target": ({"loss": {"type": "MSELoss"}}, "loss: is to be called with", "x, y"),
    "an unknown loss": ({"loss": {"type": "MSELos"}}, "loss.type: unknown type", "did you mean: MSELoss?"),
    "no callback": (
        {"callbacks": [{"type": f"{HERE}:Nothing"}]},
        "callbacks.0.type: not a distopt.callbacks.Callback",
        "",
    ),
}


@pytest.mark.parametrize(("changes", "message", "hint"), BAD.values(), ids=BAD)
def test_it_is_told_before_anything_is_written(tmp_path, capsys, changes, message, hint):
    plain = {"optimizer": {"type": "SGD", "lr": 0.1}, "param_scheduler": None, "eval": None}
    path = write_config(tmp_path, **{"model": model()} | data() | plain | changes)
    assert worker.main([str(path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"{path}:")
    assert said.count(message) == 1
    assert hint in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


VAL = {
    "other keys": ({"type": f"{HERE}:Mappings", "odd": 0}, {}, "unexpected keyword argument 'z'"),
    "no target": (
        {"type": "tests.components:Windows"},
        {"model": {"type": "torch.nn:Linear", "in_features": 9, "out_features": 1}}
        | {"loss": {"type": "MSELoss"}}
        | data(train={"type": "tests.components:Points"}, val={"type": "tests.components:Windows"}),
        "the batch has no target",
    ),
}


@pytest.mark.parametrize(("val", "changes", "message"), VAL.values(), ids=VAL)
def test_validation_data_that_does_not_fit_is_blamed_itself(tmp_path, capsys, val, changes, message):
    plain = {"optimizer": {"type": "SGD", "lr": 0.1}, "param_scheduler": None, "eval": {"every": 5}}
    path = write_config(tmp_path, **{"model": model()} | data(val=val) | plain | changes)
    assert cli.main(["check", "--full", str(path)]) == worker.main([str(path)]) == 2
    checked, trained = capsys.readouterr().err.split("\n\n", 1)
    assert f"{checked}\n\n" == trained
    assert trained.startswith(f"{path}:")
    assert ": data.val: " in trained
    assert message in trained
    assert not (tmp_path / "run").exists()


METRICS = {
    "unknown metric": ({"type": "Acuracy"}, "eval.metrics.m.type: unknown type", "did you mean: Accuracy?"),
    "wrong shapes": (
        {"type": "MeanSquaredError"},
        "eval.metrics.m: MeanSquaredError does not take predictions and targets like these",
        "of shape (2",
    ),
    "no number": (
        {"type": "torchmetrics.classification:MulticlassAccuracy", "num_classes": 3, "average": "none"},
        "eval.metrics.m: MulticlassAccuracy computes no single number",
        "average: macro",
    ),
}


@pytest.mark.parametrize(("metric", "message", "hint"), METRICS.values(), ids=METRICS)
def test_a_metric_that_does_not_fit_is_told_before_the_first_step(tmp_path, capsys, metric, message, hint):
    pytest.importorskip("torchmetrics")
    points = {"type": "tests.components:Points", "length": 64}
    changes = data(train=points, val={**points, "length": 21}, micro_batch_size=2)
    path = write_config(
        tmp_path,
        **changes,
        model={"type": "tests.components:Classifier"},
        loss={"type": "CrossEntropyLoss"},
        optimizer={"type": "SGD", "lr": 0.1},
        param_scheduler=None,
        eval={"every": 5, "metrics": {"m": metric}},
    )
    assert worker.main([str(path)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert hint in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("strategy", ["fsdp", "single", "{type: ddp, find_unused_parameters: true}"])
def test_unused_parameters_are_allowed_where_nothing_waits_for_them(tmp_path, strategy):
    path = write_config(
        tmp_path, **data(), model={"type": f"{HERE}:Partly"}, optimizer={"type": "SGD"}, eval=None
    )
    assert worker.main([str(path), "param_scheduler=null", f"strategy={strategy}", "max_steps=3"]) == 0
