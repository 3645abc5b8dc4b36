"""Parameters that have no part in a loss, on all ranks or on some."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from distopt import ConfigError, parallel
from distopt.config import StrategyConfig
from tests.kit import run_distributed

CPU = torch.device("cpu")


class Moody(nn.Module):
    """Uses its second layer at times."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.uses_both = nn.Linear(4, 4), nn.Linear(4, 4), True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return (self.second(x) if self.uses_both else x).sum()


def _complaint(options: dict[str, Any]) -> tuple[str, str]:
    model = Moody()
    wrapped = parallel.wrap(model, StrategyConfig(type="ddp", **options), CPU)
    for model.uses_both in (True, True, False):
        wrapped.zero_grad()
        wrapped(torch.ones(2, 4)).backward()
        try:
            parallel.check_exchanged(wrapped)
        except ConfigError as error:
            assert not model.uses_both
            return error.key, error.given
    raise AssertionError("no complaint")


@pytest.mark.parametrize(
    ("options", "key"), [({}, "strategy"), ({"static_graph": True}, "strategy.static_graph")]
)
def test_a_parameter_without_a_gradient_is_named_before_the_step_is_taken(options, key):
    assert run_distributed(_complaint, options) == [(key, "second.weight, second.bias")] * 2


class Routed(nn.Module):
    """Two experts, of which a rank may use one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.experts = nn.ModuleList([nn.Linear(4, 1), nn.Linear(4, 1)])

    def forward(self, x: torch.Tensor, used: list[int]) -> torch.Tensor:
        return sum(self.experts[i](x).sum() for i in used)


def _routed(used: list[list[int]], **options: Any) -> dict[str, torch.Tensor] | tuple[str, str]:
    model = parallel.wrap(Routed(), StrategyConfig(**{"type": "fsdp", **options}), CPU)
    loss = model(torch.ones(2, 4), used[torch.distributed.get_rank()])
    try:
        parallel.check_same_used(model, loss)
    except ConfigError as error:
        return error.key, error.given
    loss.backward()
    return {name: p.grad.full_tensor() for name, p in model.named_parameters() if p.grad is not None}


def test_ranks_that_use_different_parameters_are_refused_before_they_wait_for_each_other():
    expected = ("strategy.find_unused_parameters", "experts.1.bias, experts.1.weight used by some")
    assert run_distributed(_routed, [[0], [0, 1]]) == [expected] * 2


def test_a_static_graph_that_differs_between_ranks_is_refused():
    expected = ("strategy.static_graph", "experts.1.bias, experts.1.weight used by some")
    static = partial(_routed, type="ddp", static_graph=True)
    assert run_distributed(static, [[0], [0, 1]]) == [expected] * 2


finds_unused = pytest.mark.skipif(
    not hasattr(FSDPModule, "set_reduce_scatter_unused_params"),
    reason="this torch's fsdp does not look for them",
)


@finds_unused
def test_units_that_only_some_ranks_use_are_refused():
    expected = ("strategy.units", "experts.0, experts.1 used by some")
    finding = partial(_routed, find_unused_parameters=True, units=["Linear"])
    assert run_distributed(finding, [[0], [1]]) == [expected] * 2


def test_parameters_that_no_rank_uses_are_no_matter():
    assert set(run_distributed(_routed, [[0], [0]])[0]) == {"experts.0.weight", "experts.0.bias"}


@finds_unused
def test_what_a_rank_does_not_use_counts_as_0_where_that_is_looked_for():
    for found in run_distributed(partial(_routed, find_unused_parameters=True), [[0], [1]]):
        assert {name: grad.unique().item() for name, grad in found.items()} == {
            "experts.0.weight": 1,
            "experts.0.bias": 1,
            "experts.1.weight": 1,
            "experts.1.bias": 1,
        }


def test_looking_for_unused_parameters_is_refused_where_torch_cannot(monkeypatch):
    monkeypatch.delattr(FSDPModule, "set_reduce_scatter_unused_params", raising=False)
    with pytest.raises(ConfigError, match=r"find_unused_parameters: means nothing to the fsdp of torch"):
        parallel.try_wrap(Routed(), StrategyConfig(type="fsdp", find_unused_parameters=True))
