"""What tests of the step on local shards share: models, and what is compared."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from distopt import parallel
from distopt.config import StrategyConfig
from distopt.optim.local_shards import step_local_shards

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


def dtensors(optimizer: torch.optim.Optimizer) -> list[DTensor]:
    values = [value for state in optimizer.state.values() for value in state.values()]
    return [value for value in values if isinstance(value, DTensor)]


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
