"""An optimizer built before wrapping trains the wrapped model, or is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
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
    assert len(prebuilt.bind(model).param_groups[0]["params"]) == 4


def test_a_group_of_frozen_parameters_alone_leaves_the_optimizer():
    model = net()
    optimizer = torch.optim.SGD([{"params": list(layer.parameters())} for layer in model], lr=0.1)
    model[1].requires_grad_(False)
    plan = Prebuilt(optimizer, model).plan
    assert [group.param_names for group in plan.groups] == [["0.weight", "0.bias"], ["2.weight", "2.bias"]]
    assert [group["param_names"] for group in optimizer.param_groups] == [g.param_names for g in plan.groups]


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
def test_a_parameter_that_is_listed_twice_is_owned_once():
    model = net()
    optimizer = torch.optim.SGD([*model.parameters(), model[0].weight], lr=0.1)
    prebuilt = Prebuilt(optimizer, model)
    assert len(prebuilt.bind(model).param_groups[0]["params"]) == 6
    assert prebuilt.plan.groups[0].param_names.count("0.weight") == 1


def test_an_optimizer_of_frozen_parameters_alone_is_refused():
    model = net().requires_grad_(False)
    with pytest.raises(ConfigError, match="every parameter is frozen") as error:
        Prebuilt(torch.optim.SGD(model.parameters(), lr=0.1), model)
    assert error.value.key == "model"


def test_an_optimizer_that_needs_a_closure_is_refused():
    model = net()
    with pytest.raises(ConfigError, match=r"^optimizer: evaluates the loss several times"):
        Prebuilt(torch.optim.LBFGS(model.parameters()), model)


def _states(steps: int) -> tuple[dict[str, torch.Tensor], bool]:
    """The parameters after `steps` before sharding and as many behind it; and whether state is sharded."""
    model = net()
    optimizer = torch.optim.AdamW(groups(model), lr=0.1)
    for _ in range(steps):
        step(model, optimizer)
    prebuilt = Prebuilt(optimizer, model)
    fully_shard(model)
    optimizer = prebuilt.bind(model)
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


def _moved_after_a_forward() -> list[bool]:
    model = net()
    prebuilt = Prebuilt(torch.optim.SGD(model.parameters(), lr=0.1), model)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    fully_shard(model)
    with torch.no_grad():
        model(torch.ones(4, 3))
    step(model, prebuilt.bind(model))
    after = [parameter.full_tensor() for parameter in model.parameters()]
    return [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]


def test_what_is_bound_after_a_forward_is_trained():
    assert run_distributed(_moved_after_a_forward) == [[True] * 6] * 2


def given(folder: Path, **changes: Any) -> Path:
    return write_config(folder, **{"optimizer": {"type": "AdamW"}, **changes})


def gpt() -> ByteGPT:
    torch.manual_seed(0)
    return ByteGPT(context=8, width=16, depth=2, heads=2)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    embedding = model.embedding.weight
    others = [p for p in model.parameters() if p is not embedding]
    parts = [{"params": [embedding], "lr": 5e-3, "name": "embedding"}, {"params": others}]
    return torch.optim.AdamW(parts, lr=1e-2)


def _train(config: Path, frozen: bool = False) -> dict[str, torch.Tensor]:
    model = gpt()
    optimizer = adamw(model)
    if frozen:
        with_state(optimizer)
        model.positions.requires_grad_(False)
    Runner(load_config(config), model=model, optimizer=optimizer).train()
    return whole(model)


def with_state(optimizer: torch.optim.Optimizer) -> None:
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_run_with_a_prebuilt_optimizer_is_the_same_on_two_ranks(tmp_path, strategy):
    run_distributed(_train, given(tmp_path, work_dir=str(tmp_path / "alone")), world=1)
    run_distributed(_train, given(tmp_path, strategy=strategy))
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "alone"), rel=1e-4)


def test_its_groups_are_logged_by_name_and_follow_the_schedule(tmp_path):
    run_distributed(_train, given(tmp_path), world=1)
    lrs = [row["lr"] for row in rows(tmp_path / "run")]
    assert lrs[0].keys() == {"embedding", "default"}
    assert lrs[3]["default"] == pytest.approx(2 * lrs[3]["embedding"])
    assert lrs[0]["default"] == pytest.approx(1e-3)


def test_a_run_with_a_prebuilt_optimizer_resumes(tmp_path):
    [expected] = run_distributed(_train, given(tmp_path, work_dir=str(tmp_path / "whole")), world=1)
    run_distributed(_train, given(tmp_path, max_steps=8, eval=None), world=1)
    [resumed] = run_distributed(_train, given(tmp_path), world=1)
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


def test_a_paramwise_cfg_beside_it_is_refused(tmp_path):
    config = load_config(write_config(tmp_path))
    model = gpt()
    with pytest.raises(ConfigError, match=r"paramwise_cfg: is not for an optimizer that is built already"):
        Runner(config, model=model, optimizer=adamw(model)).train()


def _refusal_of_state_on_one_rank(config: Path) -> str:
    model = gpt()
    optimizer = adamw(model)
    if dist.get_rank() == 1:
        with_state(optimizer)
    with pytest.raises(RuntimeError) as error:
        Runner(load_config(config), model=model, optimizer=optimizer).train()
    return str(error.value)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_state_on_one_rank_only_is_refused_on_all(tmp_path, strategy):
    messages = run_distributed(_refusal_of_state_on_one_rank, given(tmp_path, strategy=strategy))
    told = "the ranks do not agree on the state of the optimizer"
    assert [told in message for message in messages] == [True, True]


def test_a_run_with_a_parameter_frozen_after_the_first_step_resumes(tmp_path):
    run_distributed(_train, given(tmp_path, max_steps=8, eval=None), True, world=1)
    [parameters] = run_distributed(_train, given(tmp_path), True, world=1)
    before = gpt()
    with_state(adamw(before))
    assert torch.equal(parameters["positions.weight"], before.positions.weight)


def test_the_base_lr_is_the_one_before_a_scheduler_of_torchs():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.optim.lr_scheduler.LinearLR(optimizer, 0.1)
    assert Prebuilt(optimizer, model).plan.groups[0].options["lr"] == 0.1


def test_a_second_run_begins_with_the_lr_of_the_first():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Prebuilt(optimizer, model)
    optimizer.param_groups[0]["lr"] = 0.003  # as a schedule leaves it
    assert Prebuilt(optimizer, model).plan.groups[0].options["lr"] == 0.1


def test_an_lr_tensor_becomes_a_number_for_the_schedule():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.25))
    Prebuilt(optimizer, model)
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert isinstance(optimizer.param_groups[0]["lr"], float)


def test_an_optimizer_without_an_lr_of_its_own_is_taken():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.param_groups[0]["lr"] = None  # as that of transformers' Adafactor, which makes its own
    assert Prebuilt(optimizer, model).plan.groups[0].options["lr"] is None


def test_what_is_no_plain_data_stays_out_of_the_plan():
    model = net()
    optimizer = torch.optim.SGD([{"params": list(model.parameters()), "scale": len, "of": [1]}], lr=0.1)
    options = Prebuilt(optimizer, model).plan.groups[0].options
    assert "scale" not in options
    assert options["of"] == [1]


def test_lists_of_parameters_that_the_optimizer_holds_on_to_are_filled_anew():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    held = optimizer.param_groups[0]["params"]
    prebuilt = Prebuilt(optimizer, model)
    model[0].weight = nn.Parameter(torch.ones(5, 3))
    prebuilt.bind(model)
    assert held[0] is model[0].weight


def _refusal_of_factored_state() -> str:
    model = net()
    optimizer = torch.optim.Adafactor(model.parameters())
    with_state(optimizer)
    prebuilt = Prebuilt(optimizer, model)
    fully_shard(model)
    with pytest.raises(ConfigError) as error:
        prebuilt.bind(model)
    return error.value.problem


def test_state_that_cannot_be_sharded_is_refused():
    assert (
        "state row_var of 0.weight is not shaped like the parameter"
        in run_distributed(_refusal_of_factored_state)[0]
    )


def _train_from_meta(config: Path) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        model = gpt()
    Runner(load_config(config), model=model, optimizer=adamw(model)).train()
    return whole(model)


def test_an_optimizer_built_on_a_meta_model_trains_the_real_one(tmp_path):
    config = given(tmp_path, eval=None)
    before = gpt()
    [after] = run_distributed(_train_from_meta, config, world=1)
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0]
    assert {name: p.shape for name, p in after.items()} == {
        name: p.shape for name, p in whole(before).items()
    }
