"""What tests of a resume under another config share: a small model, and two starts of one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import nn
from torch.distributed.tensor import DTensor

from distopt import Runner, load_config
from distopt.callbacks import Callback
from tests.kit.files import write_at_once

State = dict[str, dict[str, Any]]


class Net(nn.Module):
    """Three modules under names to choose, with buffers in the norm, whose parts may be frozen or tied.

    The twin of the first stands behind them, or before them where `tied` is "first".
    """

    def __init__(
        self,
        first: str = "first",
        norm: str = "norm",
        last: str = "last",
        frozen: str | None = None,
        extra: bool = False,
        tied: bool | str = False,
        untied: bool = False,
        width: int = 4,
    ) -> None:
        super().__init__()
        self.names = first, norm, last
        if tied == "first":
            self.twin = nn.Linear(9, width)
        self.add_module(first, nn.Linear(9, width))
        self.add_module(norm, nn.BatchNorm1d(width))
        self.add_module(last, nn.Linear(width, 9))
        if tied and tied != "first":
            self.twin = nn.Linear(9, width)
        if tied:
            self.twin.weight = self.twin.weight if untied else self.get_submodule(first).weight
        if extra:
            self.extra = nn.BatchNorm1d(9)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(frozen is None or not name.startswith(frozen))

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        x = windows.float() / 32
        for name in self.names:
            x = self.get_submodule(name)(x)
        x = self.extra(x) if hasattr(self, "extra") else x
        x = self.twin(x) if hasattr(self, "twin") else x
        return (x - 1).square().mean()


class Spy(Callback):
    """Keeps what a start found, what its first step used, and what it left."""

    def on_start(self, run: Any) -> None:
        self.found, self.found_weights = states(run.optimizer), weights(run.model)
        self.used: State = {}

    def on_step(self, run: Any) -> None:
        if not self.used:
            for group in run.optimizer.param_groups:
                options = {k: v for k, v in group.items() if k not in ("params", "param_names")}
                self.used |= dict.fromkeys(group["param_names"], options)

    def on_end(self, run: Any) -> None:
        self.left, self.left_weights = states(run.optimizer), weights(run.model)


class Starts(NamedTuple):
    """Of one run, under two configs."""

    first: Spy
    second: Spy
    told: list[str]
    """What the second said of its checkpoint."""


def states(optimizer: torch.optim.Optimizer) -> State:
    """FQN → the optimizer's state, whole."""
    named = {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
    }
    return {
        name: {key: _whole(value) for key, value in optimizer.state[parameter].items()}
        for name, parameter in named.items()
        if optimizer.state.get(parameter)
    }


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: _whole(value) for name, value in model.state_dict().items()}


def _whole(value: Any) -> Any:
    return (value.full_tensor() if isinstance(value, DTensor) else value).detach().cpu().clone()


def write(folder: Path, **changes: Any) -> Path:
    """A config of `Net` in `folder`; `changes` replace whole sections, or those of `model` are arguments."""
    net = {"type": "tests.resumes:Net", **changes.pop("net", {})}
    content: dict[str, Any] = {
        "work_dir": str(folder / "run"),
        "model": net,
        "data": {"train": {"type": "tests.components:Windows"}, "batch_size": 16},
        "max_steps": 3,
        "optimizer": ADAMW,
        **changes,
    }
    path = folder / "cfg.yaml"
    write_at_once(path, yaml.safe_dump(content))
    return path


def start(folder: Path, **changes: Any) -> tuple[Spy, Runner]:
    """Trains, in this process or as one of the ranks."""
    spy = Spy()
    runner = Runner(load_config(write(folder, **changes)), callbacks=[spy])
    runner.train()
    return spy, runner


def twice(folder: Path, first: dict[str, Any], second: dict[str, Any]) -> Starts:
    """Three steps under one config, and a fourth under another."""
    before, _ = start(folder, **first)
    after, runner = start(folder, max_steps=4, **second)
    return Starts(before, after, [*runner.inheritance.values, *runner.lost])


def continued(starts: Starts, names: dict[str, str] | None = None) -> set[str]:
    """The parameters whose optimizer state the second start found as the first had left it.

    Args:
        starts: From `twice`.
        names: The name before → the name after, of those that have another.
    """
    same = set()
    for name, left in starts.first.left.items():
        now = (names or {}).get(name, name)
        found = starts.second.found.get(now)
        if found and found.keys() == left.keys():
            assert left["step"] == 3
            if all(torch.equal(found[key], left[key]) for key in left):
                same.add(now)
    return same


ADAMW: dict[str, Any] = {"type": "AdamW", "lr": 0.01, "weight_decay": 0.1}


def adamw(custom_keys: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """An `optimizer` section; keys of `paramwise_cfg` are among `changes`."""
    rules = {key: changes.pop(key) for key in list(changes) if key.endswith("_mult")}
    if custom_keys:
        rules["custom_keys"] = custom_keys
    return {"optimizer": {**ADAMW, **changes, "paramwise_cfg": {"bypass_duplicate": True, **rules}}}
