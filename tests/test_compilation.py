"""torch.compile: the same training, and what is said where it does not go well."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distopt import ConfigError, parallel
from distopt.config import CompileConfig
from distopt.models import ByteGPT
from distopt.parallel.compilation import compile_model
from tests.covering import left_to_system
from tests.kit import run_distributed
from tests.runs import CONFIG, losses, train, write_config


class Branching(nn.Module):
    """Two blocks that look at a value."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.linear(x)
            if x.sum() > 0:
                x = x + 1
            return x

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(self.Block(), self.Block())

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch._dynamo.reset()


def compiled(model: nn.Module, **options: Any) -> nn.Module:
    compile_model(model, CompileConfig(**{"backend": "aot_eager", **options}))
    return model


@pytest.mark.parametrize("scope", ["blocks", "model"])
def test_names_stay(scope):
    bare = ByteGPT(context=8, width=16, depth=2, heads=2)
    names = list(bare.state_dict())
    assert list(compiled(bare, scope=scope).state_dict()) == names


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "checkpointing", "scope"),
    left_to_system(
        [
            (strategy, checkpointing, scope)
            for strategy, *options in (
                ("single", "none"),
                ("ddp", "none", "full"),
                ("fsdp", "none", "selective"),
            )
            for checkpointing, scope in product(options, ("blocks", "model"))
        ],
        but=[
            ("single", "none", "model"),
            ("ddp", "none", "blocks"),
            ("ddp", "full", "model"),
            ("fsdp", "none", "model"),
            ("fsdp", "selective", "blocks"),
        ],
    ),
)
def test_a_compiled_run_has_the_losses_of_one_that_is_not(tmp_path, strategy, checkpointing, scope):
    """With an epoch's last batch that is a smaller one, and evaluation on samples that do not divide."""
    data = {**CONFIG["data"], "train": {**CONFIG["data"]["train"], "length": 70}}
    world = 1 if strategy == "single" else 2
    (tmp_path / "eager").mkdir()
    run_distributed(train, write_config(tmp_path / "eager", strategy="single", data=data), world=1)
    changes = {"strategy": strategy, "data": data, "activation_checkpointing": checkpointing}
    path = write_config(tmp_path, compile={"backend": "aot_eager", "scope": scope}, **changes)
    run_distributed(train, path, world=world, timeout=180)
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "eager" / "run"), rel=1e-4)


def test_a_break_in_the_graph_is_told_with_its_place_and_reason():
    with parallel.compiling() as places:
        compiled(Branching())(torch.ones(2, 4))
    assert len(places) == 1
    assert f"{__file__}:" in places[0]
    assert "data-dependent" in places[0].lower()


def test_a_break_in_the_graph_is_an_error_of_the_users_where_the_whole_is_wanted():
    with pytest.raises(ConfigError) as caught, parallel.compiling():
        compiled(Branching(), fullgraph=True)(torch.ones(2, 4))
    assert caught.value.key == "compile.fullgraph"
    assert f"{__file__}:" in caught.value.problem


def _run_with_a_break(path) -> None:
    train(path)


def test_a_run_warns_of_a_break_in_the_graph(tmp_path):
    model = {"type": "tests.components:Curious", "width": 4}
    data = {"train": {"type": "tests.components:Points"}, "batch_size": 16}
    path = write_config(
        tmp_path,
        model=model,
        data=data,
        loss={"type": "CrossEntropyLoss"},
        eval=None,
        optimizer={"type": "SGD", "lr": 0.1},
        param_scheduler=None,
        compile={"backend": "aot_eager", "scope": "model"},
    )
    run_distributed(_run_with_a_break, path)
    said = (tmp_path / "run" / "logs" / "rank0.log").read_text()
    assert said.count("torch.compile breaks the graph, which costs speed, at ") == 1


@pytest.mark.parametrize(
    ("options", "key", "suggestion"),
    [
        ({"backend": "inductr"}, "compile.backend", "inductor"),
        ({"backend": "inductor", "mode": "max-autotun"}, "compile.mode", "max-autotune"),
        ({"mode": "max-autotune"}, "compile.mode", None),
    ],
)
def test_what_torch_does_not_have_is_refused_with_the_nearest(options, key, suggestion):
    with pytest.raises(ConfigError) as caught:
        compiled(ByteGPT(context=8, width=16, depth=2, heads=2), **options)
    assert (caught.value.key, caught.value.suggestion) == (key, suggestion)


def test_a_model_without_repeated_blocks_is_to_be_compiled_as_a_whole():
    with pytest.raises(ConfigError, match="no repeated blocks"):
        compiled(nn.Linear(2, 2))
