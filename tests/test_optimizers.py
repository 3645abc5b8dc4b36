"""Every optimizer of torch's by name: trained to what it does on one process, or refused with the reason."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from distopt import ConfigError, build_optimizer, make_plan, parallel
from distopt.config import OptimizerConfig, StrategyConfig, validate
from distopt.optim import Configured
from distopt.registry.names import short_names
from tests.kit import run_distributed

CPU = torch.device("cpu")
REFUSED = {"LBFGS": "needs a closure", "SparseAdam": "needs sparse gradients"}
NOT_SHARDED = ["Adafactor"]  # not element-wise, and torch's own fails on DTensors
TRAINED = sorted(set(short_names("optimizer")) - set(REFUSED))
ARGUMENTS = {"SGD": {"momentum": 0.9}, "RMSprop": {"momentum": 0.9}, "Adafactor": {"weight_decay": 0.1}}


class Net(nn.Module):
    """Repeated blocks, so that FSDP has several units; without biases where only matrices will do."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        block = [nn.Sequential(nn.Linear(6, 10, bias=bias), nn.Tanh(), nn.Linear(10, 6)) for _ in range(2)]
        self.blocks = nn.ModuleList(block)
        if not bias:
            for layer in block:
                layer[2].bias = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


def _net(name: str) -> Net:
    torch.manual_seed(0)
    return Net(bias=name != "Muon")


def _steps(model: nn.Module, optimizer: torch.optim.Optimizer, rank: int, world: int) -> dict:
    data = torch.randn(8, 6, generator=torch.Generator().manual_seed(1)).chunk(world)[rank]
    for _ in range(4):
        model(data).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return {
        name.removeprefix("module."): (p.full_tensor() if isinstance(p, DTensor) else p).detach()
        for name, p in model.named_parameters()
    }


def _cfg(name: str) -> dict:
    return {"type": name, "lr": 0.01, **ARGUMENTS.get(name, {})}


def _trained(name: str, strategy: str) -> dict:
    model = _net(name)
    groups = Configured(model, validate(OptimizerConfig, _cfg(name)))
    wrapped = parallel.wrap(model, StrategyConfig(type=strategy), CPU)
    return _steps(wrapped, groups.bind(wrapped), dist.get_rank(), dist.get_world_size())


@pytest.mark.parametrize(
    ("name", "strategy"),
    [(name, s) for name in TRAINED for s in ("ddp", "fsdp") if not (s == "fsdp" and name in NOT_SHARDED)],
)
def test_it_trains_on_two_ranks_as_torchs_own_does_on_one_process(name, strategy):
    model, (_, *arguments) = _net(name), _cfg(name).items()
    plain = getattr(torch.optim, name)(model.parameters(), **dict(arguments))
    expected = _steps(model, plain, rank=0, world=1)
    for trained in run_distributed(_trained, name, strategy):
        for fqn, value in expected.items():
            # Muon orthogonalises in bf16, where a sum over shards is rounded otherwise: 2 % of what it moves.
            atol = 1e-3 if (name, strategy) == ("Muon", "fsdp") else 1e-5
            torch.testing.assert_close(trained[fqn], value, rtol=1e-3, atol=atol)


def _refusal(name: str) -> str:
    with pytest.raises(ConfigError) as caught:
        _trained(name, "fsdp")
    return str(caught.value)


@pytest.mark.parametrize("name", NOT_SHARDED)
def test_what_cannot_step_sharded_parameters_is_refused_before_the_first_step(name):
    for refusal in run_distributed(_refusal, name):
        assert refusal.startswith("optimizer.type: cannot step sharded parameters")
        assert "strategy: ddp" in refusal


@pytest.mark.parametrize(("name", "reason"), REFUSED.items())
def test_what_cannot_train_is_refused_with_the_reason(name, reason):
    with pytest.raises(ConfigError, match=reason) as caught:
        make_plan(_net(name), {"type": name, "lr": 0.01})
    assert caught.value.key == "optimizer.type"


def test_the_fused_kernel_is_not_taken_for_memory_with_gaps():
    whole = torch.zeros(4, 8)
    module = nn.Module()
    module.weight = nn.Parameter(whole[:, :4])
    optimizer = build_optimizer(module, {"type": "AdamW", "lr": 0.5})
    module.weight.grad = torch.ones(4, 4)
    optimizer.step()
    assert torch.equal(whole[:, 4:], torch.zeros(4, 4))  # the kernel would have written there


@pytest.mark.parametrize("asked", [{}, {"foreach": True}, {"fused": False}])
def test_the_fused_kernel_is_taken_where_nothing_else_is_asked_for(asked):
    optimizer = build_optimizer(_net("AdamW"), {"type": "AdamW", "lr": 0.5, **asked})
    assert bool(optimizer.param_groups[0]["fused"]) == (not asked)
