"""The rehearsal before the first step leaves no trace, and lets ranks agree on what a model returns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from distopt import Runner, load_config, parallel
from distopt.callbacks import Callback, Run
from distopt.config import StrategyConfig
from distopt.objective import Objective
from distopt.rehearsal import rehearse
from tests.kit import run_distributed
from tests.runs import CONFIG, losses, write_config

CPU = torch.device("cpu")
ROWS = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
strategies = pytest.mark.parametrize("strategy", ["ddp", "fsdp"])


class Moody(nn.Module):
    """Has running statistics, a cache that grows, dropout; on one rank it returns a number more."""

    def __init__(self, odd_rank: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
        self.register_buffer("cache", torch.zeros(2))
        self.odd_rank = odd_rank

    def forward(self, rows: Tensor) -> Any:
        self.cache = torch.zeros(len(rows))
        result = {"loss": self.layers(rows).square().mean()}
        return result | ({"more": 1.0} if dist.get_rank() == self.odd_rank else {})


def traces(strategy: str) -> list[str]:
    """What a rehearsal has changed."""
    model = Moody()
    wrapped = parallel.wrap(model, StrategyConfig(type=strategy), CPU)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=1.0)
    before = [value.clone() for value in _whole(model)]
    torch.manual_seed(3)
    rehearse(Objective(wrapped), optimizer, ROWS, precision="fp32", device=CPU)
    found = []
    if torch.rand(3).tolist() != torch.rand(3, generator=torch.Generator().manual_seed(3)).tolist():
        found.append("the random state")
    if not all(map(torch.equal, before, _whole(model))):
        found.append("weights or buffers")
    if any(p.grad is not None for p in model.parameters()):
        found.append("gradients")
    if any(isinstance(p, DTensor) != (strategy == "fsdp") for p in model.parameters()):
        found.append("the kind of parameters")
    return found


def _whole(model: nn.Module) -> list[Tensor]:
    return [v.full_tensor() if isinstance(v, DTensor) else v for v in (*model.parameters(), *model.buffers())]


@strategies
def test_it_leaves_no_trace(strategy):
    assert run_distributed(traces, strategy) == [[], []]


def disagree(strategy: str) -> str:
    wrapped = parallel.wrap(Moody(odd_rank=1), StrategyConfig(type=strategy), CPU)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=1.0)
    with pytest.raises(RuntimeError) as caught:
        rehearse(Objective(wrapped), optimizer, ROWS, precision="fp32", device=CPU)
    return str(caught.value)


@strategies
def test_ranks_that_return_other_numbers_are_told_rather_than_waited_for(strategy):
    expected = (
        "the ranks do not agree on the numbers returned by the model (rank 0: loss, rank 1: loss, more)"
    )
    assert run_distributed(disagree, strategy) == [expected] * 2


class Kinds(Callback):
    """Notes at each hook whether parameters are DTensors; sets all weights to 0 before the first step."""

    def __init__(self) -> None:
        self.found: set[tuple[str, bool]] = set()

    def _note(self, hook: str, run: Run) -> None:
        self.found |= {(hook, isinstance(p, DTensor)) for p in run.model.parameters()}

    def on_start(self, run: Run) -> None:
        self._note("start", run)
        with torch.no_grad():
            for parameter in run.model.parameters():
                parameter.zero_()

    def on_step(self, run: Run) -> None:
        self._note("step", run)

    def on_eval(self, run: Run, row: dict[str, Any]) -> None:
        self._note("eval", run)

    def on_save(self, run: Run, checkpoint: Path) -> None:
        self._note("save", run)

    def on_end(self, run: Run) -> None:
        self._note("end", run)


def kinds(path: Path) -> set[tuple[str, bool]]:
    callback = Kinds()
    Runner(load_config(path), callbacks=[callback]).train()
    return callback.found


@strategies
def test_callbacks_always_see_the_parameters_that_are_trained_and_may_write_them(tmp_path, strategy):
    still = {"type": "SGD", "lr": 0.0, "paramwise_cfg": {"bypass_duplicate": True}}
    changes = {"strategy": strategy, "optimizer": still, "param_scheduler": None, "eval": {"every": 3}}
    sharded = strategy == "fsdp"
    for found in run_distributed(kinds, write_config(tmp_path, **changes)):
        assert found == {(hook, sharded) for hook in ("start", "step", "eval", "save", "end")}
    uniform = torch.tensor(256.0).log().item()
    assert CONFIG["model"]["type"] == "ByteGPT"
    assert losses(tmp_path / "run") == pytest.approx([uniform] * 12)
