"""The step on local shards: bit by bit that on DTensors, and nobody outside of it sees a difference."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from distopt import build_optimizer, make_plan, parallel
from distopt.checkpoint import directory
from distopt.checkpoint.state import capture, load
from distopt.checkpoint.writer import write
from distopt.config import StrategyConfig
from distopt.optim import Prebuilt
from distopt.optim.local_shards import step_local_shards
from tests.kit import run_distributed

CPU = torch.device("cpu")
ELEMENT_WISE = {
    "Adadelta": {},
    "Adagrad": {"weight_decay": 0.1},
    "Adam": {"amsgrad": True},
    "AdamW": {},
    "Adamax": {},
    "ASGD": {"t0": 2},
    "NAdam": {},
    "RAdam": {},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "Rprop": {},
    "SGD": {"momentum": 0.9, "nesterov": True},
}
FUSED = ("Adagrad", "Adam", "AdamW", "SGD")
NO_DTENSORS = ("Rprop", "SGD fused", "Adagrad fused")
"""Torch's own fail on DTensors: they are held against the same over plain shards."""
LAYOUTS = {
    "fsdp 2": (2, {"type": "fsdp"}),
    "offloaded": (2, {"type": "fsdp", "cpu_offload": True}),
    "fsdp 4": (4, {"type": "fsdp"}),
    "hsdp 2x2": (4, {"type": "hsdp", "shard_size": 2}),
}


class Net(nn.Module):
    """Of 4 ranks some have no element of the biases, and none as many as the others of the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3), nn.Tanh(), nn.Linear(3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def make(strategy: dict | None = None, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return parallel.wrap(Net(), StrategyConfig(**(strategy or {"type": "fsdp"})), CPU)


def adamw(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(model.parameters(), **{"lr": 0.1, "fused": True, **options})
    step_local_shards(optimizer)
    return optimizer


def backward(model: nn.Module, step: int) -> Tensor:
    data = torch.randn(4, 5, generator=torch.Generator().manual_seed(100 * step + dist.get_rank()))
    loss = model(data).square().mean()
    loss.backward()
    return loss


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for step in range(steps):
        backward(model, step)
        optimizer.step()
        optimizer.zero_grad()


def full(value: Any) -> Any:
    return value.full_tensor().detach() if isinstance(value, DTensor) else value


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Parameters and state, whole."""
    found = {name: full(p) for name, p in model.named_parameters()}
    for name, p in model.named_parameters():
        found |= {f"{name} {key}": full(value) for key, value in optimizer.state[p].items()}
    return found


def differing(these: dict[str, Any], those: dict[str, Any]) -> list[str]:
    assert these.keys() == those.keys()
    return [name for name, value in these.items() if not torch.equal(value, those[name])]


def shows_dtensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> bool:
    live = list(model.parameters())
    shown = [p for group in optimizer.param_groups for p in group["params"]]
    states = [optimizer.state_dict()["state"][i] for i in range(len(live))] + [*optimizer.state.values()]
    values = [value for state in states for key, value in state.items() if key != "step"]
    return (
        all(a is b for a, b in zip(shown, live, strict=True))
        and set(map(id, optimizer.state)) <= set(map(id, live))
        and all(isinstance(value, DTensor) for value in values)
    )


class Shards(nn.Module):
    """A rank's shards as plain parameters, with the gradients of a model that is sharded."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.of = dict(model.named_parameters())
        self.shards = {name: nn.Parameter(p.to_local().detach().clone()) for name, p in self.of.items()}

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        for name, shard in self.shards.items():
            shard.grad = self.of[name].grad.to_local().clone()
        optimizer.step()

    def differing(self, by_shards: torch.optim.Optimizer, optimizer: torch.optim.Optimizer) -> list[str]:
        odd = [
            name for name, shard in self.shards.items() if not torch.equal(shard, self.of[name].to_local())
        ]
        for name, shard in self.shards.items():
            for key, value in by_shards.state[shard].items():
                ours = optimizer.state[self.of[name]][key]
                ours = ours.to_local() if isinstance(ours, DTensor) else ours
                odd += [] if torch.equal(value, ours) else [f"{name} {key}"]
        return odd


def differing_after_20_steps(name: str, strategy: dict) -> dict[str, list[str]]:
    """Implementation → which of parameters and state are not those of the same without local shards."""
    found = {}
    for implementation in ("fused", "foreach", "loop"):
        options = {"lr": 0.05, **ELEMENT_WISE[name], "foreach": implementation == "foreach"}
        if implementation == "fused":
            if name not in FUSED:
                continue
            options = {"lr": 0.05, **ELEMENT_WISE[name], "fused": True}
        cls = getattr(torch.optim, name)
        model, twin = make(strategy), make(strategy)
        optimizer = cls(model.parameters(), **options)
        step_local_shards(optimizer)
        if {name, f"{name} {implementation}"} & {*NO_DTENSORS}:
            shards = Shards(model)
            oracle = cls(shards.shards.values(), **options)
            for step in range(20):
                backward(model, step)
                shards.step(oracle)
                optimizer.step()
                optimizer.zero_grad()
            found[implementation] = shards.differing(oracle, optimizer)
        else:
            oracle = cls(twin.parameters(), **options)
            train(model, optimizer, 20)
            train(twin, oracle, 20)
            found[implementation] = differing(everything(model, optimizer), everything(twin, oracle))
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ELEMENT_WISE)
def test_parameters_and_state_are_bitwise_those_of_the_step_on_dtensors(name, layout):
    world, strategy = LAYOUTS[layout]
    for found in run_distributed(differing_after_20_steps, name, strategy, world=world):
        assert found == {implementation: [] for implementation in found}
        assert len(found) == (3 if name in FUSED else 2)


def seen_after_steps() -> bool:
    model = make()
    optimizer = adamw(model)
    train(model, optimizer)
    return shows_dtensors(model, optimizer) and len(optimizer.state) == 6


def test_groups_and_state_have_dtensors_after_steps():
    assert run_distributed(seen_after_steps, world=4) == [True] * 4


def types_in_a_step() -> set[type]:
    model = make()
    optimizer = adamw(model, foreach=True, fused=None)
    seen = set()
    original = torch._foreach_lerp_

    def look(tensors: list[Tensor], *args: Any) -> None:
        seen.update(map(type, tensors))
        original(tensors, *args)

    torch._foreach_lerp_ = look
    try:
        train(model, optimizer)
    finally:
        torch._foreach_lerp_ = original
    return seen


def test_what_is_stepped_is_no_dtensor():
    assert run_distributed(types_in_a_step) == [{Tensor}] * 2


def memory_of_state() -> bool:
    model = make()
    optimizer = adamw(model)
    train(model, optimizer)
    pointers = [value.to_local().data_ptr() for value in dtensors(optimizer)]
    before = [full(value).clone() for value in dtensors(optimizer)]
    train(model, optimizer, 1)
    same = pointers == [value.to_local().data_ptr() for value in dtensors(optimizer)]
    return same and not any(torch.equal(a, full(b)) for a, b in zip(before, dtensors(optimizer), strict=True))


def dtensors(optimizer: torch.optim.Optimizer) -> list[DTensor]:
    values = [value for state in optimizer.state.values() for value in state.values()]
    return [value for value in values if isinstance(value, DTensor)]


def test_a_step_moves_the_state_where_it_is():
    assert run_distributed(memory_of_state) == [True] * 2


def seen_after_a_failure() -> bool:
    model = make()
    optimizer = adamw(model)
    train(model, optimizer)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.param_groups[0]["betas"] = (0.9,)
    with pytest.raises(ValueError, match="unpack"):
        optimizer.step()
    shards = [p._local_tensor for p in model.parameters()]
    return shows_dtensors(model, optimizer) and all(shard.grad is None for shard in shards)


def test_a_step_that_raises_leaves_dtensors():
    assert run_distributed(seen_after_a_failure) == [True] * 2


def seen_by_hooks_and_closure() -> list[bool]:
    model = make()
    optimizer = adamw(model)
    seen = []

    def look(*_: Any) -> None:
        seen.append(shows_dtensors(model, optimizer))

    def closure() -> Tensor:
        look()
        optimizer.zero_grad()
        return backward(model, 0)

    train(model, optimizer)
    optimizer.register_step_pre_hook(look)
    optimizer.register_step_post_hook(look)
    loss = optimizer.step(closure)
    assert isinstance(loss, Tensor)
    return seen


def test_hooks_and_closure_see_dtensors():
    assert run_distributed(seen_by_hooks_and_closure) == [[True] * 3] * 2


def trained_with_a_closure() -> list[str]:
    model, twin = make(), make()
    optimizer, oracle = adamw(model), torch.optim.AdamW(twin.parameters(), lr=0.1, fused=True)
    for step in range(3):
        backward(model, step)
        optimizer.step()
        optimizer.zero_grad()
        oracle.step(lambda step=step: backward(twin, step))
        oracle.zero_grad()
    return differing(everything(model, optimizer), everything(twin, oracle))


def test_a_closure_is_evaluated_before_the_step():
    assert run_distributed(trained_with_a_closure) == [[]] * 2


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


def without_a_gradient() -> list[str]:
    model, twin = make(), make()
    optimizer, oracle = adamw(model), torch.optim.AdamW(twin.parameters(), lr=0.1, fused=True)
    for net, opt in ((model, optimizer), (twin, oracle)):
        for step in range(4):
            backward(net, step)
            if step % 2 == 0:
                net.layers[2].weight.grad = None
            opt.step()
            opt.zero_grad()
    return differing(everything(model, optimizer), everything(twin, oracle))


def test_a_parameter_may_have_a_gradient_at_times_only():
    assert run_distributed(without_a_gradient) == [[]] * 2


def with_a_plain_parameter() -> tuple[list[str], bool]:
    model, twin = make(), make()
    extra = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = torch.optim.AdamW([*model.parameters(), extra[0]], lr=0.1, foreach=False)
    step_local_shards(optimizer)
    oracle = torch.optim.AdamW([*twin.parameters(), extra[1]], lr=0.1, foreach=False)
    for step in range(4):
        for net, opt, plain in ((model, optimizer, extra[0]), (twin, oracle, extra[1])):
            backward(net, step)
            plain.grad = torch.full((3,), float(step))
            opt.step()
            assert plain.grad is not None
            opt.zero_grad()
    odd = differing(everything(model, optimizer), everything(twin, oracle))
    return odd, torch.equal(*extra) and torch.equal(
        *(optimizer.state[extra[0]]["exp_avg"], oracle.state[extra[1]]["exp_avg"])
    )


def test_plain_parameters_are_stepped_beside_sharded_ones():
    assert run_distributed(with_a_plain_parameter) == [([], True)] * 2


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
