"""Wrapping: units, ties, and the same training under every strategy."""

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from distopt import parallel
from distopt.config import StrategyConfig
from distopt.models import ByteGPT
from tests.kit import run_distributed

CPU = torch.device("cpu")


def tiny(**kwargs) -> ByteGPT:
    torch.manual_seed(0)
    return ByteGPT(**{"context": 8, "width": 16, "depth": 2, "heads": 2, **kwargs})


def test_repeated_blocks_are_units():
    model = tiny()
    assert parallel.find_units(model) == list(model.blocks)


def test_a_block_tied_to_something_outside_is_left_to_the_root():
    model = tiny()
    model.blocks[1].attention.out.weight = model.blocks[0].attention.out.weight
    assert parallel.find_units(model) == []


def test_a_tie_leaves_only_its_own_blocks_to_the_root():
    model = tiny(depth=3)
    model.norm.weight = model.blocks[1].mlp_norm.weight
    assert parallel.find_units(model) == [model.blocks[0], model.blocks[2]]


def test_a_tie_inside_one_block_keeps_it_a_unit():
    model = tiny()
    model.blocks[0].mlp_norm.weight = model.blocks[0].attention_norm.weight
    assert parallel.find_units(model) == list(model.blocks)


def test_leaves_of_a_sequential_are_no_units():
    assert parallel.find_units(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))) == []


def _full(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def _gradients(strategy: str, accumulation: int, model: ByteGPT | None = None) -> dict[str, torch.Tensor]:
    """Gradients of 8 samples, split over ranks and micro-batches; and the tie, after wrapping."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    model = tiny() if model is None else model
    wrapped = parallel.wrap(model, StrategyConfig(type=strategy), CPU)
    tokens = torch.randint(256, (8, 9), generator=torch.Generator().manual_seed(1))
    mine = tokens.chunk(world)[rank].chunk(accumulation)
    for i, batch in enumerate(mine):
        with parallel.gradient_sync(wrapped, enabled=i == accumulation - 1):
            (wrapped(batch)["loss"] / accumulation).backward()
    assert model.head.weight is model.embedding.weight
    return {name: _full(parameter.grad) for name, parameter in model.named_parameters()}


def _reference() -> dict[str, torch.Tensor]:
    model = tiny()
    tokens = torch.randint(256, (8, 9), generator=torch.Generator().manual_seed(1))
    model(tokens)["loss"].backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_gradients_are_those_of_the_whole_batch_on_one_process(strategy, accumulation):
    reference = _reference()
    for gradients in run_distributed(_gradients, strategy, accumulation):
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, reference[name], rtol=1e-4, atol=1e-6)


def _collectives_of_a_micro_step(strategy: str) -> int:
    """Collectives run by a micro-step that is not the last."""
    wrapped = parallel.wrap(tiny(), StrategyConfig(type=strategy), CPU)
    tokens = torch.randint(256, (2, 9))
    with torch.profiler.profile() as profile, parallel.gradient_sync(wrapped, enabled=False):
        wrapped(tokens)["loss"].backward()
    names = [event.name for event in profile.events()]
    return sum("all_reduce" in name or "reduce_scatter" in name or "allreduce" in name for name in names)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_gradients_are_not_exchanged_before_the_last_micro_step(strategy):
    assert run_distributed(_collectives_of_a_micro_step, strategy) == [0, 0]
