"""Optimizers from elsewhere: by import path, built before, or by a factory."""

from __future__ import annotations

import pytest
import torch

from distopt import ConfigError, Runner, load_config
from distopt.optim import evaluating
from tests.kit import run_distributed
from tests.runs import losses, rows, status, train, write_config

SCHEDULE_FREE = {
    "type": "schedulefree:AdamWScheduleFree",
    "lr": 1e-2,
    "warmup_steps": 3,
    "paramwise_cfg": {"bypass_duplicate": True, "custom_keys": {"embedding": {"lr_mult": 0.5}}},
}


def schedule_free(folder, **changes):
    return write_config(folder, optimizer=SCHEDULE_FREE, param_scheduler=[], **changes)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_schedule_free_run_that_is_resumed_is_the_uninterrupted_one(tmp_path, strategy):
    # It counts its steps in its groups, evaluates other weights than it trains, and is saved with these.
    whole = schedule_free(tmp_path, name="whole.yaml", work_dir=str(tmp_path / "whole"))
    run_distributed(train, whole, f"strategy={strategy}")
    cut = schedule_free(tmp_path)
    run_distributed(train, cut, f"strategy={strategy}", "max_steps=8", "eval.every=4")
    run_distributed(train, cut, f"strategy={strategy}", "eval.every=4")
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)


class Switching(torch.optim.SGD):
    """Says in which mode it was asked to step."""

    mode = "eval"

    def train(self) -> None:
        self.mode = "train"

    def eval(self) -> None:
        self.mode = "eval"

    def step(self, closure=None):
        assert self.mode == "train"
        return super().step(closure)


def test_evaluating_switches_there_and_back():
    optimizer = Switching([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    optimizer.train()
    with evaluating(optimizer):
        assert optimizer.mode == "eval"
    assert optimizer.mode == "train"


def test_an_optimizer_with_modes_steps_in_the_one_for_training(tmp_path):
    optimizer = {"type": f"{__name__}:Switching", "lr": 0.1}
    train(write_config(tmp_path, optimizer=optimizer))
    assert status(tmp_path / "run")["state"] == "done"


def test_the_arguments_of_one_by_import_path_are_held_against_its_signature(tmp_path):
    path = write_config(tmp_path, optimizer={**SCHEDULE_FREE, "warmup_step": 3})
    with pytest.raises(ConfigError, match=r"warmup_step: unknown argument(.|\n)*mean: warmup_steps"):
        Runner(load_config(path)).train()


@pytest.mark.parametrize(
    "strategy",
    [
        "ddp",
        pytest.param(
            "fsdp",
            marks=pytest.mark.skipif(torch.__version__ < "2.13", reason="this torch has no lerp of shards"),
        ),
    ],
)
def test_one_of_another_package_trains(tmp_path, strategy):
    pytest.importorskip("pytorch_optimizer")
    lion = {**SCHEDULE_FREE, "type": "pytorch_optimizer:Lion", "lr": 1e-3}
    del lion["warmup_steps"]
    run_distributed(train, write_config(tmp_path, optimizer=lion), f"strategy={strategy}")
    assert list(rows(tmp_path / "run")[-1]["lr"]) == ["embedding", "default"]
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0]


def _with_a_factory(path, strategy: str) -> str:
    runner = Runner(
        load_config(path, [f"strategy={strategy}"]),
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.3),
    )
    runner.train()
    return type(runner.optimizer).__name__


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_factory_builds_the_optimizer_of_the_unwrapped_model(tmp_path, strategy):
    path = write_config(tmp_path, optimizer={"type": "SGD"})
    assert run_distributed(_with_a_factory, path, strategy) == ["SGD"] * 2
    assert rows(tmp_path / "run")[0]["lr"] == {"default": pytest.approx(0.03)}


def test_a_factory_that_returns_no_optimizer_is_refused(tmp_path):
    path = write_config(tmp_path, optimizer={"type": "SGD"})
    with pytest.raises(ConfigError, match="returned no optimizer, but a int"):
        Runner(load_config(path), optimizer=lambda model: 3).train()
