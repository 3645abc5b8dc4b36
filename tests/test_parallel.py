"""Wrapping: units, ties, and the same training under every strategy."""

import re
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from distopt import ConfigError, parallel
from distopt.config import ActivationCheckpointingConfig, CompileConfig, StrategyConfig
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


def test_a_tie_of_nested_units_leaves_those_to_the_root_that_have_a_part_of_it():
    model = tiny(depth=3)
    model.blocks[1].attention.out.weight = model.blocks[0].attention.out.weight
    model.blocks[2].attention_norm.weight = model.blocks[2].mlp_norm.weight
    units = parallel.find_units(model, ["Block", "Attention", "LayerNorm"])
    outer = [model.blocks[2], model.blocks[2].attention]
    norms = [norm for b in model.blocks[:2] for norm in (b.attention_norm, b.mlp_norm)]
    assert set(units) == {*outer, *norms, model.norm}


def test_leaves_of_a_sequential_are_no_units():
    assert parallel.find_units(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))) == []


def _full(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def _gradients(
    strategy: dict[str, Any], accumulation: int = 1, model: ByteGPT | None = None
) -> dict[str, torch.Tensor]:
    """Gradients of 8 samples, split over ranks and micro-batches; and the tie, after wrapping."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    model = tiny() if model is None else model
    wrapped = parallel.wrap(model, StrategyConfig(**strategy), CPU)
    tokens = torch.randint(256, (8, 9), generator=torch.Generator().manual_seed(1))
    mine = tokens.chunk(world)[rank].chunk(accumulation)
    wrapped(mine[0])["loss"].backward()  # as the rehearsal: some options begin to act after it
    for _ in range(2):
        wrapped.zero_grad()
        for i, batch in enumerate(mine):
            with parallel.gradient_sync(wrapped, enabled=i == accumulation - 1):
                (wrapped(batch)["loss"] / accumulation).backward()
    assert model.head.weight is model.embedding.weight
    return {name: _full(p.grad) for name, p in model.named_parameters() if p.grad is not None}


def _reference() -> dict[str, torch.Tensor]:
    model = tiny()
    tokens = torch.randint(256, (8, 9), generator=torch.Generator().manual_seed(1))
    model(tokens)["loss"].backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_gradients_are_the_reference(
    strategy: dict[str, Any], accumulation: int = 1, world: int = 2, rtol: float = 1e-4, atol: float = 1e-6
) -> None:
    reference = _reference()
    for gradients in run_distributed(_gradients, strategy, accumulation, world=world):
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, reference[name], rtol=rtol, atol=atol)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    "strategy",
    [
        {"type": "ddp"},
        {"type": "ddp", "static_graph": True},
        {"type": "ddp", "bucket_cap_mb": 1},
        {"type": "fsdp"},
        {"type": "fsdp", "units": ["Attention", "*.mlp"], "prefetch": 2},
        {"type": "fsdp", "reshard_after_forward": False, "prefetch": 1},
        {"type": "fsdp", "cpu_offload": True},
        {"type": "hsdp", "shard_size": 1},
        {"type": "hsdp", "shard_size": 2},
    ],
    ids=lambda strategy: "-".join(map(str, strategy.values())),
)
def test_gradients_are_those_of_the_whole_batch_on_one_process(strategy, accumulation):
    assert_gradients_are_the_reference(strategy, accumulation)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    "strategy",
    [
        {"type": "hsdp", "shard_size": 2},
        {"type": "fsdp", "reshard_after_forward": 2},
    ],
    ids=["hsdp", "reshard_after_forward"],
)
def test_gradients_of_four_ranks_are_those_of_the_whole_batch(strategy, accumulation):
    assert_gradients_are_the_reference(strategy, accumulation, world=4)


@pytest.mark.parametrize(
    "strategy",
    [{"type": "ddp", "compress_gradients": "bf16"}, {"type": "fsdp", "reduce_dtype": "bf16"}],
    ids=["ddp", "fsdp"],
)
def test_gradients_added_up_in_bf16_are_close(strategy):
    assert_gradients_are_the_reference(strategy, rtol=2e-2, atol=1e-4)


def _dtypes_in_forward(strategy: dict[str, Any], precision: parallel.Precision) -> tuple[set, set, set]:
    """Of a block's weights while it computes, of the shards, and of the gradients."""
    model = tiny()
    wrapped = parallel.wrap(model, StrategyConfig(**strategy), CPU, precision=precision)
    seen = set()
    model.blocks[0].attention.register_forward_pre_hook(
        lambda module, _: seen.update(p.dtype for p in module.parameters())
    )
    with parallel.autocast(precision, CPU):
        loss = wrapped(torch.randint(256, (2, 9)))["loss"]
    loss.backward()
    parameters = list(model.parameters())
    return seen, {p.dtype for p in parameters}, {p.grad.dtype for p in parameters}


@pytest.mark.parametrize(
    ("strategy", "gathered"),
    [
        ({"type": "fsdp"}, torch.bfloat16),
        ({"type": "fsdp", "param_dtype": "fp32"}, torch.float32),
        ({"type": "ddp"}, torch.float32),
    ],
    ids=["fsdp", "fsdp-fp32", "ddp"],
)
def test_parameters_are_gathered_in_the_precision_and_kept_in_fp32(strategy, gathered):
    fp32 = {torch.float32}
    expected = ({gathered}, fp32, fp32)
    assert run_distributed(_dtypes_in_forward, strategy, "bf16") == [expected, expected]


def _placements(strategy: dict[str, Any], frozen: str = "") -> dict[str, str]:
    model = tiny()
    for name, parameter in model.named_parameters():
        if frozen and frozen in name:
            parameter.requires_grad_(False)
    parallel.wrap(model, StrategyConfig(**strategy), CPU)
    return {
        name: str(p.placements) if isinstance(p, DTensor) else "whole" for name, p in model.named_parameters()
    }


def test_ignored_parameters_stay_whole():
    strategy = {"type": "fsdp", "ignored": ["embedding.*"]}
    placements = run_distributed(_placements, strategy, "embedding")[0]
    assert {name for name, kind in placements.items() if kind == "whole"} == {"embedding.weight"}


def test_hsdp_shards_in_one_dimension_and_replicates_in_the_other():
    placements = run_distributed(_placements, {"type": "hsdp", "shard_size": 2}, world=4)[0]
    assert set(placements.values()) == {"(Replicate(), Shard(dim=0))"}


def _refusal(strategy: dict[str, Any]) -> tuple[str, str | None]:
    try:
        parallel.wrap(tiny(), StrategyConfig(**strategy), CPU)
    except ConfigError as error:
        return error.key, error.suggestion
    raise AssertionError("accepted")


@pytest.mark.parametrize(
    ("strategy", "key", "suggestion"),
    [
        ({"type": "fsdp", "units": ["Blok"]}, "strategy.units", "Block"),
        ({"type": "fsdp", "ignored": ["embeding.weight"]}, "strategy.ignored", "embedding.weight"),
        ({"type": "fsdp", "ignored": ["embedding.weight"]}, "strategy.ignored", None),
    ],
    ids=["units", "ignored", "ignored and trained"],
)
def test_a_pattern_that_matches_nothing_is_refused(strategy, key, suggestion):
    assert run_distributed(_refusal, strategy) == [(key, suggestion)] * 2


def test_units_named_by_class_or_pattern_are_found_in_the_order_of_the_walk():
    model = tiny()
    found = parallel.find_units(model, ["blocks.1", "Attention"])
    assert found == [model.blocks[0].attention, model.blocks[1], model.blocks[1].attention]


@pytest.mark.parametrize("pattern", ["blocks.*", "block*"])
def test_a_pattern_means_the_outermost_modules_that_can_be_called(pattern):
    model = tiny()
    assert parallel.find_units(model, [pattern]) == list(model.blocks)
    assert parallel.find_units(model, [pattern, "*.attention"]) == [
        module for block in model.blocks for module in (block, block.attention)
    ]


def test_classes_that_a_model_calls_indivisible_are_units_where_no_block_repeats():
    model = tiny(depth=1)
    model._no_split_modules = ["Block"]
    assert parallel.find_units(model) == [model.blocks[0]]


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


def _of_two_dtypes() -> tuple[str, str]:
    model = tiny()
    model.blocks[1].mlp.bfloat16()
    try:
        parallel.wrap(model, StrategyConfig(type="fsdp"), CPU)
    except ConfigError as error:
        return error.key, error.given
    raise AssertionError("accepted")


def test_a_unit_that_is_trained_in_two_dtypes_is_refused_and_both_are_named():
    [(key, given), _] = run_distributed(_of_two_dtypes)
    assert key == "strategy"
    assert re.fullmatch(r"blocks\.1\.\S+: torch\.float32, blocks\.1\.mlp\.\S+: torch\.bfloat16", given)


class Norms(nn.Module):
    """Every kind of norm, on an input of fp32 and on what autocast has lowered."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        kinds = [nn.BatchNorm1d(4), nn.GroupNorm(2, 4), nn.LayerNorm(6), nn.RMSNorm(6), nn.InstanceNorm1d(4)]
        self.first = nn.Sequential(*kinds)
        self.middle = nn.Conv1d(4, 4, 3, padding=1)
        self.last = nn.Sequential(nn.BatchNorm1d(4), nn.LayerNorm(6), nn.Linear(6, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.middle(self.first(x))).float().square().mean()


def _gradients_of_norms(
    strategy: str, precision: parallel.Precision, *options: Any
) -> dict[str, torch.Tensor]:
    model = Norms()
    recomputed, compiled = options
    wrapped = parallel.wrap(
        model,
        StrategyConfig(type=strategy),
        CPU,
        precision=precision,
        checkpointing=ActivationCheckpointingConfig(modules=["LayerNorm", "BatchNorm1d", "middle"])
        if recomputed
        else None,
        compilation=CompileConfig(scope="model", backend="aot_eager") if compiled else None,
    )
    with parallel.autocast(precision, CPU):
        loss = wrapped(torch.randn(8, 4, 6, generator=torch.Generator().manual_seed(0)))
    loss.backward()
    return {name: _full(p.grad) for name, p in model.named_parameters()}


@pytest.mark.parametrize("recomputed", [False, True], ids=["", "recomputed"])
@pytest.mark.parametrize(
    "compiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["", "compiled"]
)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_norms_take_fp32_beside_parameters_gathered_in_half_precision(precision, recomputed, compiled):
    expected = run_distributed(_gradients_of_norms, "ddp", precision, False, False)[0]
    found = run_distributed(_gradients_of_norms, "fsdp", precision, recomputed, compiled)[0]
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=5e-2, atol=5e-3, msg=name)
