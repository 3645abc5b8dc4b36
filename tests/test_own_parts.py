"""Models, losses and metrics of the user's own: the same on any number of ranks as in one process."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from distopt import Runner, load_config
from tests.components import Classifier, Points, masked_cross_entropy
from tests.kit import run_distributed
from tests.runs import losses, rows, train, train_alone, write_config

pytest.importorskip("torchmetrics")
CHANGES: dict[str, Any] = {
    "model": {"type": "tests.components:Classifier"},
    "loss": {"type": "CrossEntropyLoss"},
    "data": {
        "train": {"type": "tests.components:Points", "length": 70},
        "val": {"type": "tests.components:Points", "length": 21, "seed": 1},
        "batch_size": 16,
        "micro_batch_size": 2,
    },
    "optimizer": {"type": "SGD", "lr": 0.1},
    "param_scheduler": None,
    "clip_grad": None,
    "max_steps": 11,
    "eval": {
        "every": 11,
        "metrics": {
            "accuracy": {"type": "Accuracy", "task": "multiclass", "num_classes": 3},
            "auroc": {"type": "torchmetrics.classification:MulticlassAUROC", "num_classes": 3},
        },
    },
}
MASKED = {"loss": {"type": "tests.components:masked_cross_entropy", "ignore": 2}}
worlds = pytest.mark.parametrize(("strategy", "world"), [("ddp", 2), ("fsdp", 2), ("fsdp", 4)])


def config(folder: Path, **changes: Any) -> Path:
    return write_config(folder, **CHANGES | changes)


def by_hand(loss: Any, steps: int = 11) -> tuple[list[float], nn.Module]:
    """70 samples in batches of 16, the last of 6: losses, and the model at the end."""
    import numpy as np

    torch.manual_seed(0)
    model, data = Classifier(), Points(70)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = []
    for step in range(steps):
        epoch, place = divmod(step, 5)
        order = np.random.default_rng((0, epoch)).permutation(70)[place * 16 : (place + 1) * 16]
        output = loss(model(data.points[order]), data.labels[order])
        value = output["loss"] if isinstance(output, dict) else output
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(value.item())
    return found, model


@worlds
def test_the_last_batch_of_an_epoch_is_trained_on_whatever_its_size(tmp_path, strategy, world):
    run_distributed(train, config(tmp_path, strategy=strategy), world=world)
    expected, _ = by_hand(nn.functional.cross_entropy)
    assert losses(tmp_path / "run") == pytest.approx(expected, rel=1e-4)
    assert [row["epoch"] for row in rows(tmp_path / "run")] == [0] * 5 + [1] * 5 + [2]


@worlds
def test_with_num_items_it_is_the_mean_over_the_items_of_all_ranks(tmp_path, strategy, world):
    run_distributed(train, config(tmp_path, strategy=strategy, **MASKED), world=world)
    expected, _ = by_hand(lambda logits, labels: masked_cross_entropy(logits, labels, ignore=2))
    assert losses(tmp_path / "run") == pytest.approx(expected, rel=1e-4)


def test_drop_last_leaves_the_uneven_batch_out(tmp_path):
    train_alone(config(tmp_path, data={**CHANGES["data"], "drop_last": True}))
    assert [row["epoch"] for row in rows(tmp_path / "run")] == [0] * 4 + [1] * 4 + [2] * 3


@worlds
def test_metrics_are_those_of_the_whole_validation_data(tmp_path, strategy, world):
    from torchmetrics.classification import MulticlassAUROC

    run_distributed(train, config(tmp_path, strategy=strategy), world=world)
    _, model = by_hand(nn.functional.cross_entropy)
    data = Points(21, seed=1)
    logits = model(data.points)
    auroc = MulticlassAUROC(num_classes=3)(logits, data.labels).item()
    accuracy = (logits.argmax(1) == data.labels).float().mean().item()
    [found] = [row["eval"] for row in rows(tmp_path / "run", "eval")]
    loss = nn.functional.cross_entropy(logits, data.labels).item()
    assert found == pytest.approx({"loss": loss, "accuracy": accuracy, "auroc": auroc}, rel=1e-4)


def test_a_rank_without_any_validation_sample_changes_no_metric(tmp_path):
    val = {"type": "tests.components:Points", "length": 3, "seed": 1}
    for name, world in (("one", 1), ("four", 4)):
        (tmp_path / name).mkdir()
        path = config(tmp_path / name, data={**CHANGES["data"], "val": val}, strategy="fsdp")
        run_distributed(train, path, world=world)
    one, four = (rows(tmp_path / name / "run", "eval")[-1]["eval"] for name in ("one", "four"))
    assert four == pytest.approx(one, rel=1e-4)


@pytest.mark.parametrize("form", ["tuple", "mapping"])
def test_batches_are_tuples_or_mappings_and_outputs_may_have_logits(tmp_path, form):
    data = {**CHANGES["data"], "train": {"type": "tests.components:Points", "length": 70, "form": form}}
    data["val"] = {**data["val"], "form": form}
    model = {"type": "tests.components:Classifier", "named": form == "mapping"}
    train_alone(config(tmp_path, data=data, model=model))
    expected, _ = by_hand(nn.functional.cross_entropy)
    assert losses(tmp_path / "run") == pytest.approx(expected, rel=1e-4)


def test_a_model_may_return_its_loss_and_other_numbers_which_are_logged(tmp_path):
    path = config(tmp_path, model={"type": "tests.components:OwnLoss"}, loss=None)
    run_distributed(train, path)
    expected, _ = by_hand(nn.functional.cross_entropy)
    assert losses(tmp_path / "run") == pytest.approx(expected, rel=1e-4)
    hits = [row["train"]["hits"] for row in rows(tmp_path / "run")]
    assert all(0 <= value <= 1 for value in hits)
    assert len(set(hits)) > 1
    evaluation = rows(tmp_path / "run", "eval")[-1]["eval"]
    assert evaluation["hits"] == pytest.approx(evaluation["accuracy"])


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_fp16_trains_close_to_fp32_and_its_scale_is_logged_and_kept(tmp_path, strategy):
    path = config(tmp_path, strategy=strategy, precision="fp16")
    run_distributed(train, path)
    expected, _ = by_hand(nn.functional.cross_entropy)
    assert losses(tmp_path / "run") == pytest.approx(expected, rel=0.02)
    assert rows(tmp_path / "run")[-1]["loss_scale"] == 2.0**16


def losses_from_python(path: Path) -> list[float]:
    runner = Runner(
        load_config(path),
        model=Classifier(),
        loss=nn.CrossEntropyLoss(label_smoothing=0.1),
        train_data=Points(70, seed=5),
    )
    runner.train()
    return losses(path.parent / "run")


def test_parts_given_from_python_replace_those_of_the_config(tmp_path):
    first = losses_from_python(config(tmp_path))
    assert all(map(math.isfinite, first))
    (tmp_path / "b").mkdir()
    train_alone(config(tmp_path / "b"))
    assert first != losses(tmp_path / "b" / "run")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_synchronised_batchnorm_trains_as_one_process_does(tmp_path, strategy):
    """In whole batches: a dummy of an uneven one would be normalised along."""
    model, data = {"type": "tests.components:NormedClassifier"}, {**CHANGES["data"], "drop_last": True}
    for name, world, changes in (("one", 1, {}), ("two", 2, {"sync_batchnorm": True})):
        (tmp_path / name).mkdir()
        whole = {**data, "micro_batch_size": 16 // world}
        path = config(tmp_path / name, model=model, data=whole, strategy=strategy, **changes)
        run_distributed(train, path, world=world)
    assert losses(tmp_path / "two" / "run") == pytest.approx(losses(tmp_path / "one" / "run"), rel=1e-4)
    one, two = (rows(tmp_path / name / "run", "eval")[-1]["eval"] for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-3)


def test_a_loss_may_have_weights_of_its_classes(tmp_path):
    weight = {"type": "torch:tensor", "data": [1.0, 2.0, 4.0]}
    whole = {**CHANGES["data"], "micro_batch_size": None}
    train_alone(config(tmp_path, loss={"type": "CrossEntropyLoss", "weight": weight}, data=whole))
    expected, _ = by_hand(nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 4.0])))
    assert losses(tmp_path / "run") == pytest.approx(expected, rel=1e-4)
