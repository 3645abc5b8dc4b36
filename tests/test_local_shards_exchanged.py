"""The step on local shards, where something is put in the place of what was stepped before."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn

from distopt import build_optimizer, make_plan, parallel
from distopt.checkpoint import directory
from distopt.checkpoint.state import capture, load
from distopt.checkpoint.writer import write
from distopt.config import StrategyConfig
from distopt.optim import Prebuilt
from distopt.optim.local_shards import step_local_shards
from tests.kit import run_distributed
from tests.shards import (
    CPU,
    Net,
    adamw,
    backward,
    differing,
    dtensors,
    everything,
    full,
    make,
    shows_dtensors,
    train,
)


def noticed(change: str) -> list[str]:
    """After 2 steps something is exchanged, in both ways alike; then 2 more."""
    model, twin = make(), make()
    optimizer, oracle = adamw(model), torch.optim.AdamW(twin.parameters(), lr=0.1, fused=True)
    for net, opt in ((model, optimizer), (twin, oracle)):
        train(net, opt, 2)
        first = next(net.parameters())
        if change == "load_state_dict":
            opt.load_state_dict(copy.deepcopy(opt.state_dict()))
            opt.state_dict()["state"][0]["exp_avg"].zero_()
        elif change == "entry":
            opt.state[first]["exp_avg"] = torch.ones_like(first).detach()
        elif change == "entries":
            opt.state[first] = {key: value.clone() for key, value in opt.state[first].items()}
            opt.state[first]["step"] += 5
        elif change == "cleared":
            opt.state.clear()
        elif change == "group":
            last = opt.param_groups[0]["params"].pop()
            del opt.state[last]
            opt.add_param_group({"params": [last], "lr": 0.2})
        elif change == "parameter":
            net.layers[0].weight.data.copy_(torch.ones_like(first))
            new = nn.Parameter(first.detach().clone())
            new.grad = torch.ones_like(new)
            opt.param_groups[0]["params"][0] = new
            opt.step()
            opt.param_groups[0]["params"][0] = first
        elif change == "shard":
            first._local_tensor = first._local_tensor.clone()
        train(net, opt, 2)
    return differing(everything(model, optimizer), everything(twin, oracle))


@pytest.mark.parametrize(
    "change", ["load_state_dict", "entry", "entries", "cleared", "group", "parameter", "shard"]
)
def test_what_is_exchanged_between_steps_is_noticed(change):
    assert run_distributed(noticed, change) == [[]] * 2


def other_layouts() -> bool:
    """State that is not sharded like its parameter is for DTensors to make sense of."""
    from torch.distributed.tensor import Replicate

    model, twin = make(), make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, foreach=False)
    step_local_shards(optimizer)
    oracle = torch.optim.AdamW(twin.parameters(), lr=0.1, foreach=False)
    for net, opt in ((model, optimizer), (twin, oracle)):
        train(net, opt, 1)
        state = opt.state[net.layers[0].weight]
        state["exp_avg"] = state["exp_avg"].redistribute(placements=[Replicate()])
        train(net, opt, 2)
    return differing(everything(model, optimizer), everything(twin, oracle)) == []


def test_state_of_another_layout_is_stepped_as_dtensors():
    assert run_distributed(other_layouts) == [True] * 2


def stepped_copy() -> list[bool]:
    model = make()
    optimizer = adamw(model)
    train(model, optimizer)
    copied = copy.deepcopy(optimizer)
    for opt in (optimizer, copied):
        for p in opt.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)
        opt.step()
    ours, theirs = ([*opt.param_groups[0]["params"], *dtensors(opt)] for opt in (optimizer, copied))
    return [a is not b and torch.equal(full(a), full(b)) for a, b in zip(ours, theirs, strict=True)]


def test_a_deep_copy_has_state_of_its_own_and_steps_alike():
    assert run_distributed(stepped_copy) == [[True] * 18] * 2


def pickled() -> bool:
    model = make()
    optimizer = adamw(model)
    train(model, optimizer)
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    other = adamw(make())
    other.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=False))
    values = zip(dtensors(optimizer), dtensors(other), strict=True)
    return all(torch.equal(full(a), full(b)) for a, b in values)


def test_its_state_dict_can_be_pickled():
    assert run_distributed(pickled) == [True] * 2


def with_torchs_scheduler() -> list[float]:
    model = make()
    optimizer = adamw(model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    lrs = []
    for step in range(3):
        lrs.append(optimizer.param_groups[0]["lr"])
        backward(model, step)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    assert shows_dtensors(model, optimizer)
    return lrs


@pytest.mark.filterwarnings("error")
def test_torchs_schedulers_go_with_it():
    assert run_distributed(with_torchs_scheduler) == [[0.1, 0.05, 0.025]] * 2


def with_a_scaler(overflows: bool) -> list[str]:
    """The fused kernel reads grad_scale and found_inf from the optimizer."""
    model, twin = make(), make()
    optimizer, oracle = adamw(model), torch.optim.AdamW(twin.parameters(), lr=0.1, fused=True)
    before = {name: full(p).clone() for name, p in model.named_parameters()}
    for net, opt in ((model, optimizer), (twin, oracle)):
        scaler = torch.amp.GradScaler("cpu")
        for step in range(3):
            data = torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
            factor = 1e38 if overflows else 1.0
            scaler.scale(net(data).square().mean() * factor).backward()
            scaler.step(opt)
            scaler.update()
            opt.zero_grad()
    after = {name: full(p) for name, p in model.named_parameters()}
    assert (differing(before, after) == []) == overflows
    return differing(everything(model, optimizer), everything(twin, oracle))


@pytest.mark.parametrize("overflows", [False, True])
def test_a_gradient_scaler_goes_with_it(overflows):
    assert run_distributed(with_a_scaler, overflows) == [[]] * 2


def is_left(kind: str) -> bool:
    class Own(torch.optim.AdamW):
        pass

    model = make()
    if kind == "subclass":
        optimizer = Own(model.parameters())
    elif kind == "other":
        optimizer = torch.optim.Muon([p for p in model.parameters() if p.ndim == 2])
    elif kind == "scheduled":
        optimizer = torch.optim.AdamW(model.parameters())
        torch.optim.lr_scheduler.StepLR(optimizer, 1)
    elif kind == "differentiable":
        optimizer = torch.optim.AdamW(model.parameters(), differentiable=True)
    else:
        optimizer = torch.optim.AdamW(nn.Linear(2, 2).parameters())
    step = optimizer.step
    step_local_shards(optimizer)
    return optimizer.step == step


@pytest.mark.parametrize("kind", ["subclass", "other", "scheduled", "differentiable", "plain parameters"])
def test_an_optimizer_that_may_do_otherwise_is_left_as_it_is(kind):
    assert run_distributed(is_left, kind) == [True] * 2


CFG = {
    "type": "AdamW",
    "lr": 0.1,
    "paramwise_cfg": {"custom_keys": {"layers.2": {"type": "SGD", "lr": 0.1, "momentum": 0.9}}},
}


def built(how: str) -> tuple[bool, bool]:
    """Whether every optimizer steps shards, and what is shown after steps."""
    torch.manual_seed(0)
    model = Net()
    if how == "prebuilt":
        groups = Prebuilt(torch.optim.AdamW(model.parameters()), model)
        wrapped = parallel.wrap(model, StrategyConfig(type="fsdp"), CPU)
        optimizer = groups.bind(wrapped)
    else:
        wrapped = parallel.wrap(model, StrategyConfig(type="fsdp"), CPU)
        optimizer = build_optimizer(wrapped, CFG if how == "several" else {"type": "AdamW", "lr": 0.1})
    train(wrapped, optimizer)
    shown = {id(p) for group in optimizer.param_groups for p in group["params"]}
    parts = getattr(optimizer, "parts", [optimizer])
    is_whole = shown == set(map(id, wrapped.parameters())) == set(map(id, optimizer.state))
    return all("step" in vars(part) for part in parts), is_whole and len(dtensors(optimizer)) > 6


@pytest.mark.parametrize("how", ["one", "several", "prebuilt"])
def test_whatever_builds_it_an_optimizer_of_sharded_parameters_steps_shards(how):
    assert run_distributed(built, how) == [(True, True)] * 2


def save_and_train(path: Any, cfg: dict) -> dict[str, Any]:
    model = make()
    optimizer = build_optimizer(model, cfg)
    train(model, optimizer)
    progress = directory.Progress(step=3, world_size=2, data=[{}] * 2)
    write(path, capture(model, optimizer, progress, {"plan.json": make_plan(model, cfg).to_json()}))
    train(model, optimizer)
    return everything(model, optimizer)


def resume_and_train(path: Any, cfg: dict, steps_before: int) -> dict[str, Any]:
    model = make(seed=1)
    optimizer = build_optimizer(model, cfg)
    train(model, optimizer, steps_before)
    load(path, model, optimizer)
    train(model, optimizer)
    return everything(model, optimizer)


@pytest.mark.parametrize("steps_before", [0, 1])
@pytest.mark.parametrize("cfg", [CFG, {"type": "AdamW", "lr": 0.1}], ids=["several", "one"])
def test_a_checkpoint_is_taken_up_bitwise(tmp_path, cfg, steps_before):
    path = directory.step_directory(tmp_path, 3)
    uninterrupted = run_distributed(save_and_train, path, cfg)[0]
    for resumed in run_distributed(resume_and_train, path, cfg, steps_before):
        assert differing(resumed, uninterrupted) == []
