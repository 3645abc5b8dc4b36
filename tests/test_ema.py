"""The average of a model's weights: its values, where it is kept, and the weights that it stands in for."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from distopt import parallel
from distopt.config import CompileConfig, EmaConfig, StrategyConfig
from distopt.config.strategy import ActivationCheckpointingConfig
from distopt.data import MicroBatch
from distopt.ema import Ema, lint
from distopt.evaluation import Evaluation
from distopt.models import ByteGPT
from distopt.objective import Objective
from tests.components import Windows
from tests.kit import run_distributed

CPU = torch.device("cpu")
DECAY = 0.75


class Net(nn.Module):
    """A tied weight, a frozen one, and running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(9, 9, bias=False), nn.Linear(9, 9, bias=False)
        self.second.weight = self.first.weight
        self.frozen = nn.Linear(9, 9).requires_grad_(False)
        self.norm = nn.BatchNorm1d(9)
        self.register_buffer("mask", torch.full((2,), -torch.inf))

    def forward(self, windows: Tensor) -> Tensor:
        hidden = self.norm(self.frozen(self.first(windows / 32)))
        return (self.second(hidden) - 1).square().mean()


def test_frozen_parameters_and_other_buffers_have_no_average():
    assert set(Ema(Net(), EmaConfig(decay=DECAY)).averages) == {
        *("first.weight", "norm.weight", "norm.bias"),
        *("norm.running_mean", "norm.running_var"),
    }


def test_warmup_keeps_less_at_first():
    model = nn.Linear(1, 1, bias=False)
    ema = Ema(model, EmaConfig(decay=0.15, warmup=True))
    expected = model.weight.item()
    for step, decay in enumerate([1 / 10, 0.15, 0.15]):  # 2/11 would be more
        model.weight.data.fill_(step)
        ema.update()
        expected = decay * expected + (1 - decay) * step
    assert ema.averages["weight"].item() == pytest.approx(expected)


@pytest.mark.parametrize("unless", [False, torch.tensor(False)])
def test_a_step_moves_the_average_also_where_only_the_device_knows(unless):
    model = nn.Linear(3, 1)
    ema = Ema(model, EmaConfig(decay=0.75))
    expected = 0.75 * model.weight.detach() + 0.25 * 4
    model.weight.data.fill_(4.0)
    ema.update(unless=unless)
    torch.testing.assert_close(ema.averages["weight"], expected)


@pytest.mark.parametrize("unless", [True, torch.tensor(True)])
def test_a_step_that_is_left_out_leaves_the_average(unless):
    model = nn.Linear(3, 1)
    ema = Ema(model, EmaConfig(decay=0.75))
    expected = model.weight.detach().clone()
    model.weight.data.fill_(4.0)
    ema.update(unless=unless)
    assert torch.equal(ema.averages["weight"], expected)


def test_an_average_of_half_precision_keeps_what_a_step_adds():
    model = nn.Linear(1, 1, bias=False).bfloat16()
    model.weight.data.fill_(1.0)
    ema = Ema(model, EmaConfig(decay=0.999))
    model.weight.data.fill_(2.0)
    ema.update()
    assert ema.averages["weight"].item() == pytest.approx(1.001)
    with ema.applied():
        assert model.weight.item() == 1.0
    assert model.weight.item() == 2.0
    assert ema.averages["weight"].item() == pytest.approx(1.001)


def _local_sizes(strategy: StrategyConfig) -> tuple[int, int]:
    model = ByteGPT(context=8, width=16, depth=2, heads=2)
    wrapped = parallel.wrap(model, strategy, CPU)
    averages = Ema(wrapped, EmaConfig(decay=DECAY)).averages
    return (
        sum(parameter.to_local().numel() for parameter in model.parameters()),
        sum(average.to_local().untyped_storage().nbytes() for average in averages.values()) // 4,
    )


def test_a_rank_keeps_the_average_of_its_own_shards():
    for own, kept in run_distributed(_local_sizes, StrategyConfig(type="fsdp")):
        assert kept == own
        assert kept < 0.6 * sum(
            p.numel() for p in ByteGPT(context=8, width=16, depth=2, heads=2).parameters()
        )


def _rank_statistics() -> list[float]:
    model = nn.BatchNorm1d(1)
    ema = Ema(model, EmaConfig(decay=0.5))
    model.running_mean.fill_(dist.get_rank())
    ema.update()
    return ema.state_dict()["running_mean"].tolist()


def test_running_statistics_are_saved_as_the_mean_of_all_ranks():
    assert run_distributed(_rank_statistics, world=3) == [[0.5]] * 3


def _apply(strategy: StrategyConfig) -> None:
    torch.manual_seed(0)
    model = ByteGPT(context=8, width=16, depth=2, heads=2)
    wrapped = parallel.wrap(
        model,
        strategy,
        CPU,
        checkpointing=ActivationCheckpointingConfig(),
        compilation=CompileConfig(backend="eager"),
    )
    tokens = Windows(4).windows

    def loss() -> float:
        with torch.no_grad():
            return wrapped(tokens)["loss"].item()

    def shards() -> list[Tensor]:
        parallel.reshard(wrapped)
        return [(p.to_local() if isinstance(p, DTensor) else p).detach().clone() for p in model.parameters()]

    ema = Ema(wrapped, EmaConfig(decay=0.5))
    initial = loss()
    wrapped(tokens)["loss"].backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    own, trained = shards(), loss()
    assert trained != initial
    with suppress(ZeroDivisionError), ema.applied():
        assert loss() == initial  # no update yet
        raise ZeroDivisionError
    assert loss() == trained
    assert all(map(torch.equal, shards(), own))
    ema.update()
    with ema.applied():
        assert loss() not in (initial, trained)
    assert all(map(torch.equal, shards(), own))
    assert model.head.weight is model.embedding.weight


@pytest.mark.parametrize(
    ("strategy", "world"),
    [
        ({"type": "ddp"}, 2),
        ({"type": "fsdp"}, 2),
        ({"type": "fsdp", "reshard_after_forward": False}, 2),
        ({"type": "hsdp", "shard_size": 2}, 4),
    ],
)
def test_the_weights_come_back_bit_for_bit_also_when_evaluation_raises(strategy, world):
    run_distributed(_apply, StrategyConfig(**strategy), world=world)


def _broken_off() -> None:
    model = nn.Linear(1, 1)
    ema = Ema(model, EmaConfig(decay=0.5))
    model.weight.data.fill_(7.0)
    objective = Objective(model, nn.functional.mse_loss)
    batches = [MicroBatch((torch.ones(2, 1), torch.ones(2, 1)), 2)]
    evaluation = Evaluation(objective, batches, {}, precision="fp32", device=CPU, ema=ema)
    answers = iter([False, True])
    assert evaluation.run(lambda: next(answers)) is None
    assert model.weight.item() == 7.0


def test_an_evaluation_of_the_average_can_be_broken_off():
    run_distributed(_broken_off, world=1)


def test_a_long_average_of_a_short_run_is_told():
    assert lint(None, 10) == []
    assert lint(EmaConfig(decay=0.9), 1000) == []
    assert lint(EmaConfig(decay=0.9999, warmup=True), 1000) == []
    [warning] = lint(EmaConfig(decay=0.9999), 1000)
    assert warning.startswith("ema.decay: at 0.9999 the initial weights are 90% of the average still")
