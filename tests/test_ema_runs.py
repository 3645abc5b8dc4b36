"""The average in whole runs: under every strategy, evaluated, continued, exported."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_model
from torch import Tensor
from torch.distributed.tensor import DTensor

from distopt import ConfigError, Runner, load_config
from distopt.callbacks import Callback, Run
from distopt.checkpoint import directory
from distopt.checkpoint.export import weights
from distopt.cli import main
from distopt.models import ByteGPT
from tests.components import Windows
from tests.kit import run_distributed
from tests.resumes import adamw, twice
from tests.runs import CONFIG, rows, train, train_alone, write_config
from tests.test_ema import DECAY, Net
from tests.test_skips import fragile_run

NET: dict[str, Any] = {
    "model": {"type": "tests.test_ema:Net"},
    "optimizer": {"type": "SGD", "lr": 0.1, "paramwise_cfg": {"bypass_duplicate": True}},
    "data": {**CONFIG["data"], "micro_batch_size": None},
    "sync_batchnorm": True,
    "ema": {"decay": DECAY},
}


class ByHand(Callback):
    """The average as one would write it for one process, of whole tensors."""

    def __init__(self) -> None:
        self.average: dict[str, Tensor] = {}

    def on_start(self, run: Run) -> None:
        self.average = self._weights(run)

    def on_step(self, run: Run) -> None:
        for name, value in self._weights(run).items():
            self.average[name] = DECAY * self.average[name] + (1 - DECAY) * value

    def _weights(self, run: Run) -> dict[str, Tensor]:
        named = [*run.model.named_parameters(), *run.model.named_buffers()]
        tensors = {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in named}
        return {name: t.detach().clone() for name, t in tensors.items() if t.is_floating_point()}


def average_by_hand(config: Path) -> dict[str, Tensor]:
    by_hand = ByHand()
    Runner(load_config(config), callbacks=[by_hand]).train()
    return by_hand.average


def averaged(run: Path) -> dict[str, Tensor]:
    """What the newest checkpoint has."""
    return weights(directory.newest(run), averaged=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[Path, dict[str, Tensor]]:
    """The directory of a run on one process, and its average."""
    folder = tmp_path_factory.mktemp("alone")
    by_hand = average_by_hand(write_config(folder, strategy="single", **NET))
    return folder / "run", by_hand


def check_by_hand(found: dict[str, Tensor], by_hand: dict[str, Tensor], rtol: float) -> None:
    for name in ("first.weight", "second.weight", "frozen.weight", "norm.weight", "norm.running_var"):
        torch.testing.assert_close(
            found[name], by_hand["first.weight" if name == "second.weight" else name], rtol=rtol, atol=rtol
        )


def test_the_average_is_that_by_hand(alone):
    check_by_hand(averaged(alone[0]), alone[1], rtol=1e-6)


@pytest.mark.parametrize(("strategy", "world"), [("ddp", 2), ("fsdp", 2), ("hsdp", 4)])
def test_every_strategy_has_the_average_of_one_process(tmp_path, alone, strategy, world):
    strategy = {"type": "hsdp", "shard_size": 2} if strategy == "hsdp" else strategy
    by_hand = run_distributed(average_by_hand, write_config(tmp_path, strategy=strategy, **NET), world=world)
    found = averaged(tmp_path / "run")
    check_by_hand(found, by_hand[0], rtol=1e-6)
    check_by_hand(found, alone[1], rtol=1e-4)


class Scales(Callback):
    """Notes the only weight after each step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_start(self, run: Run) -> None:
        self.seen.append(run.model.scale.item())

    on_step = on_start


def test_a_step_of_a_run_that_is_left_out_leaves_the_average(tmp_path):
    scales = Scales()
    config = load_config(fragile_run(tmp_path, [17], ema={"decay": DECAY}))
    Runner(config, callbacks=[scales]).train()
    taken = [after for before, after in pairwise(scales.seen) if after != before]
    assert len(taken) == 9  # of 12
    expected = scales.seen[0]
    for scale in taken:
        expected = DECAY * expected + (1 - DECAY) * scale
    assert averaged(tmp_path / "run")["scale"].item() == pytest.approx(expected)


def test_both_weights_are_evaluated_and_each_number_says_of_which_it_is(tmp_path):
    changes = {
        "ema": {"decay": 0.9, "evaluate": True},
        "callbacks": [{"type": "EarlyStop", "metric": "ema.loss", "patience": 9}],
        "param_scheduler": [{"type": "ReduceOnPlateauLR", "monitor": "ema.loss", "by_epoch": False}],
    }
    run_distributed(train, write_config(tmp_path, strategy="fsdp", **changes))
    row = rows(tmp_path / "run", "eval")[-1]
    for name, of_average in (("loss", False), ("ema.loss", True)):
        model = ByteGPT(context=8, width=16, depth=2, heads=2)
        model.load_state_dict(weights(directory.newest(tmp_path / "run"), averaged=of_average))
        expected = model(Windows(length=21, seed=1).windows)["loss"].item()
        assert row["eval"][name] == pytest.approx(expected, rel=1e-5)
    assert row["eval"]["loss"] != pytest.approx(row["eval"]["ema.loss"], rel=1e-2)
    assert set(row["best"]) == {"loss", "ema.loss"}


def test_evaluating_the_average_changes_nothing_in_training(tmp_path):
    with_it, without = tmp_path / "with", tmp_path / "without"
    with_it.mkdir(), without.mkdir()
    found = run_distributed(train, write_config(with_it, ema={"decay": 0.9, "evaluate": True}))[0]
    expected = run_distributed(train, write_config(without))[0]
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_continued_average_is_bitwise_the_uninterrupted_one(tmp_path, strategy):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir(), parts.mkdir()
    changes = {"strategy": strategy, "deterministic": True, "ema": {"decay": 0.9, "warmup": True}}
    run_distributed(train, write_config(whole, **changes))
    run_distributed(train, write_config(parts, max_steps=6, **changes))
    run_distributed(train, write_config(parts, **changes))
    expected, found = averaged(whole / "run"), averaged(parts / "run")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("strategy", "world"), [("fsdp", 1), ("ddp", 2), ("fsdp", 4)])
def test_another_world_and_strategy_continue_the_average(tmp_path, alone, strategy, world):
    run_distributed(train, write_config(tmp_path, strategy="fsdp", max_steps=6, **NET))
    run_distributed(train, write_config(tmp_path, strategy=strategy, **NET), world=world)
    check_by_hand(averaged(tmp_path / "run"), alone[1], rtol=1e-4)


def test_an_average_that_is_new_starts_from_the_checkpoint_s_weights_and_says_so(tmp_path, capsys):
    train_alone(write_config(tmp_path, max_steps=4))
    train_alone(write_config(tmp_path, max_steps=5, ema={"decay": DECAY}))
    assert "the checkpoint has no averaged weights: the average starts from its weights" in _words(capsys)
    before, after = (weights(directory.step_directory(tmp_path / "run", step)) for step in (4, 5))
    for name, average in averaged(tmp_path / "run").items():
        torch.testing.assert_close(average, DECAY * before[name] + (1 - DECAY) * after[name])


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        ({}, {"net": {"first": "stem"}, "resume_rename": {"first": "stem"}}, {"first.weight": "stem.weight"}),
        ({"net": {"tied": True}}, {"net": {"tied": "first"}}, {"first.weight": "twin.weight"}),
    ],
    ids=["renamed", "tied the other way round"],
)
def test_the_average_of_a_parameter_goes_on_under_another_name(tmp_path, first, second, names):
    changes = {"ema": {"decay": DECAY}, **adamw()}
    starts = twice(tmp_path, {**first, **changes}, {**second, **changes})
    before = weights(directory.step_directory(tmp_path / "run", 3), averaged=True)
    found = averaged(tmp_path / "run")
    for old, new in names.items():
        expected = DECAY * before[old] + (1 - DECAY) * starts.second.left_weights[new]
        torch.testing.assert_close(found[new], expected)
    assert starts.told == []


def test_the_average_of_what_was_frozen_starts_from_its_weights(tmp_path):
    changes = {"ema": {"decay": DECAY}, **adamw()}
    starts = twice(tmp_path, {"net": {"frozen": "last"}, **changes}, changes)
    assert "the average of last.weight, last.bias starts from the checkpoint's weights" in starts.told
    before, after = starts.first.left_weights["last.weight"], starts.second.left_weights["last.weight"]
    torch.testing.assert_close(
        averaged(tmp_path / "run")["last.weight"], DECAY * before + (1 - DECAY) * after
    )


def test_an_average_that_is_no_longer_wanted_is_left_and_that_is_said(tmp_path, capsys):
    train_alone(write_config(tmp_path, max_steps=4, ema={"decay": DECAY}))
    train_alone(write_config(tmp_path, max_steps=5))
    assert "the averaged weights of the checkpoint are left: there is no `ema` now" in _words(capsys)


def test_exported_averages_load_into_the_bare_model_and_tie(tmp_path, alone, capsys):
    out = tmp_path / "averaged.safetensors"
    assert main(["export", str(alone[0]), str(out), "--ema"]) == 0
    model = Net()
    load_model(model, out)
    assert model.second.weight is model.first.weight
    check_by_hand(model.state_dict(), alone[1], rtol=1e-6)
    torch.testing.assert_close(model.norm.running_mean, alone[1]["norm.running_mean"])


def test_a_checkpoint_without_an_average_has_none_to_export(tmp_path, capsys):
    train_alone(write_config(tmp_path, max_steps=1))
    out = tmp_path / "averaged.safetensors"
    assert main(["export", str(tmp_path / "run"), str(out), "--ema"]) == 2
    assert "has no averaged weights" in capsys.readouterr().err
    assert not out.exists()


def _words(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed, in one line."""
    printed = capsys.readouterr()
    return " ".join((printed.out + printed.err).split())


BAD = {
    "without evaluation": ({"eval": None}, "ema.evaluate: there is no evaluation"),
    "a metric of that name": (
        {"eval": {"every": 5, "metrics": {"ema.loss": {"type": "MeanMetric"}}}},
        "eval.metrics.ema.loss: names that begin with `ema.` are for the averaged weights",
    ),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_evaluated_is_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write_config(tmp_path, ema={"decay": 0.9, "evaluate": True}, **changes))


@pytest.mark.parametrize("decay", [0, 1, 1.5])
def test_a_decay_is_between_0_and_1(tmp_path, decay):
    with pytest.raises(ConfigError, match=r"ema\.decay"):
        load_config(write_config(tmp_path, ema={"decay": decay}))
