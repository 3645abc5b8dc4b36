"""A model made on the meta device and sharded there has the initial values that one process gives it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from distopt import ConfigError, names, parallel
from distopt.config import StrategyConfig
from distopt.models import ByteGPT
from tests.kit import run_distributed
from tests.runs import losses, train, write_config

CPU = torch.device("cpu")


class Many(nn.Module):
    """Initialised in many ways by its modules, two of which are tied; sizes that no world divides."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 5, padding_idx=2)
        self.head = nn.Linear(5, 7)
        self.head.weight = self.embedding.weight
        self.norm = nn.BatchNorm1d(5)
        self.lstm = nn.LSTM(5, 3, num_layers=2, proj_size=2)
        self.convolution = nn.Conv2d(3, 6, 3, groups=3)
        self.bilinear = nn.Bilinear(3, 2, 1)
        self.multihead = nn.MultiheadAttention(6, 2)


class Odd(Many):
    """And by code of its own that views, copies and multiplies parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.square, self.copied, self.tiny = nn.Linear(6, 6), nn.Linear(6, 6), nn.Parameter(torch.ones(1))

    def init_weights(self) -> None:
        nn.init.orthogonal_(self.square.weight)
        nn.init.trunc_normal_(self.convolution.weight, std=0.3, a=-0.4, b=0.4)
        self.square.bias.data.uniform_(-1, 1)
        with torch.no_grad():
            views = self.lstm.weight_ih_l0.view(4, -1, 5)
            for parameter in self.parameters():  # more than are whole at once, while the views live
                parameter.mul_(2)
            for gate in views:
                nn.init.xavier_uniform_(gate)
            self.copied.weight.copy_(self.square.weight.t())
            self.copied.bias.zero_()
            self.copied.bias[1:3] = self.square.bias.sum()
            self.tiny.fill_(3.0)


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=8, n_positions=8, vocab_size=11)
    return transformers.GPT2LMHeadModel(config)


def byte_gpt() -> nn.Module:
    return ByteGPT(context=8, width=6, depth=3, heads=2)


MODELS = {"many": Many, "odd": Odd, "byte_gpt": byte_gpt, "gpt2": gpt2}


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return MODELS[name]()


def initial(name: str, strategy: dict[str, Any]) -> tuple[dict[str, Tensor], Tensor]:
    """The values after wrapping, and the random state."""
    model = on_meta(name)
    torch.manual_seed(3)
    parallel.wrap(model, StrategyConfig(**strategy), CPU)
    names.check_ties(model, names.ties(names.visits(on_meta(name))), after="wrapping")
    state = {key: t.full_tensor() if isinstance(t, DTensor) else t for key, t in model.state_dict().items()}
    return {key: value.detach().clone() for key, value in state.items()}, torch.get_rng_state()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("strategy", "world"),
    [
        ({"type": "fsdp"}, 2),
        ({"type": "fsdp", "units": ["Linear", "Embedding"]}, 2),
        ({"type": "fsdp"}, 4),
        ({"type": "hsdp", "shard_size": 2}, 4),
        ({"type": "fsdp", "cpu_offload": True}, 1),
    ],
    ids=["fsdp2", "fsdp2-units", "fsdp4", "hsdp4", "fsdp1-offload"],
)
def test_initial_values_are_bitwise_those_of_one_process(name, strategy, world):
    if strategy.get("units") and name == "gpt2":
        strategy = {**strategy, "units": ["Conv1D"]}
    expected = on_meta(name)
    torch.manual_seed(3)
    parallel.materialize(expected)
    for found, random_state in run_distributed(initial, name, strategy, world=world):
        assert found.keys() == expected.state_dict().keys()
        for key, value in expected.state_dict().items():
            assert torch.equal(found[key], value), key
        assert torch.equal(random_state, torch.get_rng_state())


class Forgetful(nn.Module):
    """Leaves its own parameter to whoever made it, and a half of another."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.lost = nn.Parameter(torch.zeros(3))
        self.partial = nn.Parameter(torch.zeros(4))

    def init_weights(self) -> None:
        nn.init.zeros_(self.partial[:2])


def _refusal() -> str:
    with torch.device("meta"):
        model = Forgetful()
    with pytest.raises(ConfigError) as caught:
        parallel.wrap(model, StrategyConfig(type="fsdp"), CPU)
    return str(caught.value)


def test_what_nothing_initialises_is_the_same_error_on_every_rank():
    first, *others = run_distributed(_refusal, world=4)
    assert "nothing initialises lost, partial" in first
    assert others == [first] * 3


def _partly_real() -> tuple[bool, bool]:
    model = on_meta("many")
    torch.manual_seed(0)
    model.head = nn.Linear(5, 7)
    expected = model.head.weight.detach().clone()
    parallel.wrap(model, StrategyConfig(type="fsdp"), CPU)
    return torch.equal(model.head.weight.full_tensor(), expected), model.embedding.weight.is_meta


def test_what_is_real_keeps_its_values():
    assert run_distributed(_partly_real) == [(True, False)] * 2


@pytest.mark.parametrize("strategy", ["single", "ddp", "fsdp", "hsdp"])
def test_a_run_from_the_meta_device_is_the_same_under_every_strategy(tmp_path, strategy):
    world = {"single": 1, "hsdp": 4}.get(strategy, 2)
    whole = {"type": strategy, "meta_init": True}
    if strategy == "hsdp":
        whole["shard_size"] = 2
    (tmp_path / "alone").mkdir()
    alone = write_config(tmp_path / "alone", strategy={"type": "single", "meta_init": True})
    run_distributed(train, alone, world=1)
    run_distributed(train, write_config(tmp_path, strategy=whole), world=world)
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "alone" / "run"), rel=1e-5)
