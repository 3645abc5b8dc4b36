"""An optimizer built before wrapping trains the wrapped model, or is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from distopt import ConfigError, Runner, load_config
from distopt.models import ByteGPT
from distopt.optim import Prebuilt
from tests.kit import run_distributed
from tests.runs import losses, rows, whole, write_config


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 2))


def groups(model: nn.Module) -> list[dict[str, Any]]:
    norms = {*model[1].parameters()}
    return [
        {"params": [p for p in model.parameters() if p not in norms], "name": "weights"},
        {"params": list(norms), "weight_decay": 0.0},
    ]


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    generator = torch.Generator().manual_seed(1)
    model(torch.randn(4, 3, generator=generator)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_groups_keep_their_names_options_and_order():
    model = net()
    optimizer = torch.optim.AdamW(groups(model), lr=0.1)
    prebuilt = Prebuilt(optimizer, model)
    assert [(g.name, dict(g.options)) for g in prebuilt.plan.groups] == [
        ("weights", {"lr": 0.1, "weight_decay": 0.01}),
        ("default", {"lr": 0.1, "weight_decay": 0.0}),
    ]
    assert optimizer.param_groups[0]["param_names"] == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_options_that_differ_from_the_optimizers_own_are_in_the_plan():
    model = net()
    optimizer = torch.optim.AdamW([{"params": list(model.parameters()), "betas": (0.5, 0.9)}], lr=0.1)
    assert Prebuilt(optimizer, model).plan.groups[0].options["betas"] == (0.5, 0.9)


def test_groups_without_names_get_some():
    model = net()
    optimizer = torch.optim.SGD([{"params": [p]} for p in model.parameters()], lr=0.1)
    names = [group.name for group in Prebuilt(optimizer, model).plan.groups]
    assert names[:3] == ["default", "default.2", "default.3"]


def test_frozen_parameters_leave_their_group():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model[0].requires_grad_(False)
    prebuilt = Prebuilt(optimizer, model)
    assert prebuilt.plan.frozen == ("0.weight", "0.bias")
    assert len(prebuilt.rebind(model).param_groups[0]["params"]) == 4


def _states(steps: int) -> tuple[dict[str, torch.Tensor], bool]:
    """The parameters after `steps` before sharding and as many behind it; and whether state is sharded."""
    model = net()
    optimizer = torch.optim.AdamW(groups(model), lr=0.1)
    for _ in range(steps):
        step(model, optimizer)
    prebuilt = Prebuilt(optimizer, model)
    fully_shard(model)
    optimizer = prebuilt.rebind(model)
    for _ in range(steps):
        step(model, optimizer)
    sharded = [
        isinstance(value, DTensor)
        for values in optimizer.state.values()
        for key, value in values.items()
        if key != "step"
    ]
    return {name: p.full_tensor() for name, p in model.named_parameters()}, len(sharded) == 12 and all(
        sharded
    )


@pytest.mark.parametrize("world", [2, 4])
def test_state_goes_along_to_the_sharded_parameters(world):
    model = net()
    optimizer = torch.optim.AdamW(groups(model), lr=0.1)
    for _ in range(6):
        step(model, optimizer)
    for parameters, is_sharded in run_distributed(_states, 3, world=world):
        assert is_sharded
        torch.testing.assert_close(parameters, dict(model.named_parameters()))


def _train(config: Path) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = ByteGPT(context=8, width=16, depth=2, heads=2)
    embedding = model.embedding.weight
    others = [p for p in model.parameters() if p is not embedding]
    parts = [{"params": [embedding], "lr": 5e-3, "name": "embedding"}, {"params": others}]
    runner = Runner(load_config(config), model=model, optimizer=torch.optim.AdamW(parts, lr=1e-2))
    runner.train()
    return whole(runner.model)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_run_with_a_prebuilt_optimizer_is_the_same_on_two_ranks(tmp_path, strategy):
    run_distributed(_train, write_config(tmp_path, work_dir=str(tmp_path / "alone")), world=1)
    run_distributed(_train, write_config(tmp_path, strategy=strategy))
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "alone"), rel=1e-4)


def test_its_groups_are_logged_by_name_and_follow_the_schedule(tmp_path):
    run_distributed(_train, write_config(tmp_path), world=1)
    lrs = [row["lr"] for row in rows(tmp_path / "run")]
    assert lrs[0].keys() == {"embedding", "default"}
    assert lrs[3]["default"] == pytest.approx(2 * lrs[3]["embedding"])
    assert lrs[0]["default"] == pytest.approx(1e-3)


def test_a_run_with_a_prebuilt_optimizer_resumes(tmp_path):
    [expected] = run_distributed(_train, write_config(tmp_path, work_dir=str(tmp_path / "whole")), world=1)
    run_distributed(_train, write_config(tmp_path, max_steps=8, eval=None), world=1)
    [resumed] = run_distributed(_train, write_config(tmp_path), world=1)
    torch.testing.assert_close(resumed, expected, rtol=0, atol=0)


def test_an_optimizer_of_another_model_is_refused():
    model = net()
    optimizer = torch.optim.SGD(copy.deepcopy(model).parameters(), lr=0.1)
    with pytest.raises(ConfigError, match=r"SGD has parameters that are not the model's: of shape \[5, 3\]"):
        Prebuilt(optimizer, model)


def test_an_optimizer_that_leaves_parameters_out_is_refused():
    model = net()
    with pytest.raises(ConfigError, match=r"SGD would not train 1\.weight, 1\.bias, 2\.weight, 2\.bias"):
        Prebuilt(torch.optim.SGD(model[0].parameters(), lr=0.1), model)
