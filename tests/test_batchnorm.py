"""SyncBatchNorm on ranks with their own samples is BatchNorm on one process that has them all."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from distopt import ConfigError, parallel
from distopt.config import StrategyConfig
from tests.kit import run_distributed

CPU = torch.device("cpu")


def samples(shape: tuple[int, ...], sizes: list[int], seed: int, mean: float = 0) -> tuple[torch.Tensor, ...]:
    """Per rank its samples of `shape`."""
    generator = torch.Generator().manual_seed(seed)
    return (mean + 2 * torch.randn(sum(sizes), *shape, generator=generator)).split(sizes)


def norm(ndim: int, options: dict, dtype: torch.dtype = torch.float32) -> nn.Module:
    classes = {1: nn.BatchNorm1d, 2: nn.BatchNorm1d, 3: nn.BatchNorm2d}
    module = classes[ndim](3, **options, dtype=dtype)
    for seed, parameter in enumerate(module.parameters()):
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(seed))
    return module


def two_steps(module: nn.Module, parts: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Outputs and gradients of the last step, parameters' gradients of both, and the buffers after them."""
    for x, weight in parts:
        x.requires_grad_()
        output = module(x)
        (output * weight).sum().backward()
    gradients = {f"{name}.grad": parameter.grad for name, parameter in module.named_parameters()}
    return {"output": output.detach(), "input.grad": x.grad, **gradients, **dict(module.named_buffers())}


def inputs(shape: tuple[int, ...], sizes: list[int]) -> list[tuple[tuple[torch.Tensor, ...], ...]]:
    """Of each step the samples, far from zero as they may be, and what weighs the outputs in the loss."""
    return [(samples(shape, sizes, step, mean=100), samples(shape, sizes, 10 + step)) for step in range(2)]


def _on_ranks(shape: tuple[int, ...], sizes: list[int], options: dict) -> dict[str, torch.Tensor]:
    module = parallel.sync_batchnorm(norm(len(shape), options), CPU)
    rank = dist.get_rank()
    return two_steps(module, [(x[rank], weight[rank]) for x, weight in inputs(shape, sizes)])


@pytest.mark.parametrize("sizes", [[4, 4], [1, 6], [0, 5], [2, 3, 1]], ids=str)
@pytest.mark.parametrize("shape", [(3,), (3, 5), (3, 4, 2)], ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": None, "eps": 1e-3}, {"affine": False}, {"track_running_stats": False}],
    ids=lambda options: next(iter(options), "default"),
)
def test_it_is_batchnorm_over_the_samples_of_all_ranks(shape, sizes, options):
    parts = [(torch.cat(x), torch.cat(weight)) for x, weight in inputs(shape, sizes)]
    exact = [(x.double(), weight.double()) for x, weight in parts]
    expected = two_steps(norm(len(shape), options, torch.float64), exact)
    ranks = run_distributed(_on_ranks, shape, sizes, options, world=len(sizes))
    torch.testing.assert_close(together(ranks), expected, rtol=1e-4, atol=1e-4, check_dtype=False)


def together(ranks: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """What the ranks have, as one process has it."""
    whole = {}
    for name in ranks[0]:
        values = [rank[name] for rank in ranks]
        if name in ("output", "input.grad"):
            whole[name] = torch.cat(values)
        elif name.endswith(".grad"):
            whole[name] = torch.stack(values).sum(0)
        else:
            assert all(torch.equal(value, values[0]) for value in values)
            whole[name] = values[0]
    return whole


def _half() -> torch.Tensor:
    x = samples((3, 4, 4), [4, 4], 0)[dist.get_rank()].bfloat16()
    return parallel.sync_batchnorm(norm(3, {}), CPU)(x).detach()


def test_an_input_of_half_precision_is_normalized_in_full_and_returned_in_half():
    expected = norm(3, {})(torch.cat(samples((3, 4, 4), [4, 4], 0)).bfloat16()).detach()
    torch.testing.assert_close(torch.cat(run_distributed(_half)), expected)


def _evaluated(options: dict) -> torch.Tensor:
    return parallel.sync_batchnorm(norm(3, options).eval(), CPU)(samples((3, 2, 2), [4, 4], 0)[0]).detach()


@pytest.mark.parametrize("options", [{}, {"track_running_stats": False}], ids=["tracked", "untracked"])
def test_in_evaluation_it_is_batchnorm(options):
    expected = norm(3, options).eval()(samples((3, 2, 2), [4, 4], 0)[0])
    assert all(torch.equal(actual, expected) for actual in run_distributed(_evaluated, options))


def _alone() -> list[bool]:
    x = samples((3, 2, 2), [4], 0)[0]
    return [torch.equal(parallel.sync_batchnorm(norm(3, {}), CPU)(x), norm(3, {})(x))]


def test_on_one_rank_it_is_batchnorm():
    assert run_distributed(_alone, world=1) == [[True]]


def test_modules_parameters_and_buffers_keep_names_and_identity():
    model = ConvNet()
    before = {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    converted = parallel.sync_batchnorm(model, CPU)
    assert {name: id(tensor) for name, tensor in converted.state_dict(keep_vars=True).items()} == before
    assert sum(isinstance(module, nn.BatchNorm2d) for module in converted.modules()) == 0


def test_a_dimension_too_few_is_refused_as_by_torch():
    with pytest.raises(ValueError, match="expected at least 2D input"):
        parallel.sync_batchnorm(nn.BatchNorm1d(3), CPU)(torch.zeros(3))


class ConvNet(nn.Module):
    """Two repeated blocks, which FSDP makes units of."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.Sequential(
            *[nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()) for _ in range(2)]
        )
        self.head = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(x).mean((2, 3))).square().mean()


def _train(strategy: str) -> dict[str, torch.Tensor]:
    model = ConvNet()
    if strategy != "single":
        model = parallel.sync_batchnorm(model, CPU)
    wrapped = parallel.wrap(model, StrategyConfig(type=strategy), CPU)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1, momentum=0.9)
    for seed in range(2):
        x = torch.cat(samples((3, 4, 4), [4, 4], seed))
        wrapped(x.chunk(dist.get_world_size())[dist.get_rank()]).backward()
        optimizer.step()
        optimizer.zero_grad()
    state = model.state_dict().items()
    return {name: (t.full_tensor() if isinstance(t, DTensor) else t).clone() for name, t in state}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_training_steps_are_those_of_one_process(strategy):
    [expected] = run_distributed(_train, "single", world=1)
    for state in run_distributed(_train, strategy):
        torch.testing.assert_close(state, expected, rtol=1e-4, atol=1e-5)


class Activated(nn.BatchNorm1d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).relu()


def test_a_subclass_that_computes_something_else_is_refused_by_name():
    model = nn.Sequential(nn.Linear(2, 2), Activated(2))
    with pytest.raises(ConfigError, match=r"1 is a Activated, with a forward of its own"):
        parallel.sync_batchnorm(model, torch.device("cpu"))
