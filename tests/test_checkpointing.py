"""Activation checkpointing: the same gradients from fewer activations."""

from __future__ import annotations

import copy
import inspect
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distopt import ConfigError, make_plan, parallel
from distopt.config import ActivationCheckpointingConfig, StrategyConfig
from distopt.models import ByteGPT
from distopt.parallel.checkpointing import checkpoint_activations
from tests.kit import run_distributed

CPU = torch.device("cpu")
OPTIONS: list[dict[str, Any]] = [
    {},
    {"every": 2},
    {"save": "matmul"},
    {"save": ["aten.mm", "aten.addmm.default"]},
    {"modules": ["Attention", "blocks.*.mlp"]},
]


def model(options: dict[str, Any] | None, dropout: float = 0.1) -> ByteGPT:
    torch.manual_seed(0)
    made = ByteGPT(context=8, width=16, depth=3, heads=2, dropout=dropout)
    if options is not None:
        checkpoint_activations(made, ActivationCheckpointingConfig(**options))
    return made


def tokens(count: int = 4) -> Tensor:
    return torch.randint(256, (count, 9), generator=torch.Generator().manual_seed(1))


def train(made: nn.Module, batch: Tensor) -> tuple[dict[str, Tensor], int]:
    """The gradients, and how many elements were kept for the backward outside what is computed anew."""
    torch.manual_seed(1)
    kept = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = made(batch)["loss"]
    loss.backward()
    return {name: p.grad for name, p in made.named_parameters()}, kept


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradients_are_bitwise_those_without_it_dropout_included(options):
    expected, _ = train(model(None), tokens())
    found, _ = train(model(options), tokens())
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_fewer_activations_are_kept(options):
    assert train(model(options), tokens())[1] < train(model(None), tokens())[1]


@pytest.mark.parametrize(("options", "forwards"), [({}, [2, 2, 2]), ({"every": 2}, [2, 1, 2])])
def test_every_so_manieth_block_is_computed_twice(options, forwards):
    made, counts = model(options), [0, 0, 0]

    def count(index: int) -> None:
        counts[index] += 1

    for i, block in enumerate(made.blocks):
        block.attention.register_forward_hook(lambda *_, i=i: count(i))
    train(made, tokens())
    assert counts == forwards


def test_nothing_is_computed_twice_without_a_backward():
    made, seen = model({}), []
    made.blocks[0].register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    with torch.no_grad():
        made(tokens())
    assert seen == [False]


class Stateful(nn.Module):
    """Blocks whose forward changes buffers: running statistics, a power iteration, a count made anew."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.Sequential(*(self._block() for _ in range(2)))

    @staticmethod
    def _block() -> nn.Sequential:
        linear = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6))
        return nn.Sequential(linear, nn.BatchNorm1d(6, momentum=None), Counting())

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x).square().mean()


class Counting(nn.Module):
    """Scales by how often it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return x * self.calls


@pytest.mark.parametrize(
    "options",
    [{}, {"save": "matmul"}, {"modules": ["Sequential", "BatchNorm1d", "Counting"]}],
    ids=["blocks", "selective", "nested"],
)
def test_what_a_forward_changes_in_buffers_it_changes_once(options):
    """Steps, of which each begins with the buffers of the one before; some backward goes twice."""
    plain, made = Stateful(), Stateful()
    checkpoint_activations(made, ActivationCheckpointingConfig(**options))
    for seed in range(3):
        for each in (plain, made):
            loss = each(torch.randn(8, 6, generator=torch.Generator().manual_seed(seed)))
            if "save" not in options:  # whose results are dropped
                loss.backward(retain_graph=True)
            loss.backward()
        for expected, found in zip(plain.buffers(), made.buffers(), strict=True):
            assert torch.equal(found, expected)
        for expected, found in zip(plain.parameters(), made.parameters(), strict=True):
            assert torch.equal(found.grad, expected.grad)


def test_a_model_of_transformers_caches_no_keys_that_a_recomputation_would_add_again():
    made = model(None)
    made.config = SimpleNamespace(use_cache=True)
    checkpoint_activations(made, ActivationCheckpointingConfig())
    assert made.config.use_cache is False


def test_names_classes_and_groups_stay():
    rules = {"norm_decay_mult": 0, "bypass_duplicate": True}
    cfg = {"type": "AdamW", "lr": 1e-3, "weight_decay": 0.1, "paramwise_cfg": rules}
    bare, made = model(None), model({})
    assert list(made.state_dict()) == list(bare.state_dict())
    assert list(map(type, made.modules())) == list(map(type, bare.modules()))
    assert make_plan(made, cfg) == make_plan(bare, cfg)


def test_the_signature_stays_the_authors():
    parameters = inspect.signature(model({}).blocks[0].forward).parameters
    assert list(parameters) == list(inspect.signature(model(None).blocks[0].forward).parameters)


def test_a_copy_computes_with_its_own_weights():
    made = model({}, dropout=0.0)
    for copied in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        with torch.no_grad():
            for parameter in copied.parameters():
                parameter.zero_()
        assert copied(tokens())["loss"].item() == pytest.approx(torch.tensor(256.0).log().item())
        assert made(tokens())["loss"].item() != copied(tokens())["loss"].item()


def _gradients(strategy: str, options: dict[str, Any] | None, precision: str) -> dict[str, Tensor]:
    made = model(None, dropout=0.0)
    config = None if options is None else ActivationCheckpointingConfig(**options)
    wrapped = parallel.wrap(
        made, StrategyConfig(type=strategy), CPU, precision=precision, checkpointing=config
    )
    with parallel.autocast(precision, CPU):
        loss = wrapped(tokens(8).chunk(2)[torch.distributed.get_rank()])["loss"]
    loss.backward()
    return {
        name: p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
        for name, p in made.named_parameters()
    }


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("options", [{}, {"save": "matmul"}], ids=["full", "selective"])
def test_gradients_under_a_strategy_are_bitwise_those_without_it(strategy, options, precision):
    expected = run_distributed(_gradients, strategy, None, precision)[0]
    for found in run_distributed(_gradients, strategy, options, precision):
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("options", "key", "suggestion"),
    [
        ({"modules": ["Atention"]}, "activation_checkpointing.modules", "Attention"),
        ({"save": ["aten.convolutio"]}, "activation_checkpointing.save", "aten.convolution"),
        ({"save": ["mm"]}, "activation_checkpointing.save", None),
    ],
)
def test_what_does_not_exist_is_refused_with_the_nearest_that_does(options, key, suggestion):
    with pytest.raises(ConfigError) as caught:
        model(options)
    assert caught.value.key == key
    assert suggestion is None or caught.value.suggestion == suggestion


def test_a_model_without_repeated_blocks_is_refused():
    with pytest.raises(ConfigError, match="no repeated blocks"):
        checkpoint_activations(nn.Linear(2, 2), ActivationCheckpointingConfig())


def test_a_model_that_does_it_itself_is_refused():
    made = model(None)
    made.is_gradient_checkpointing = True
    with pytest.raises(ConfigError, match="itself already"):
        checkpoint_activations(made, ActivationCheckpointingConfig())
