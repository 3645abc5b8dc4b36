"""The state in a checkpoint: matched by FQN, resumed under another world and config."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed.tensor import DTensor

from distopt import ConfigError, build_optimizer, make_plan, parallel
from distopt.checkpoint import directory
from distopt.checkpoint.state import capture, load
from distopt.checkpoint.writer import write
from distopt.config import StrategyConfig
from distopt.models import ByteGPT
from tests.kit import run_distributed

CPU = torch.device("cpu")
CFG = {
    "type": "AdamW",
    "lr": 1e-3,
    "weight_decay": 0.1,
    "eps": 1e-5,  # the gradient of the keys' biases is 0 but for rounding, which Adam would blow up
    "paramwise_cfg": {"norm_decay_mult": 0, "bypass_duplicate": True},
}
PROGRESS = directory.Progress(step=3, world_size=2, data=[{"epoch": 1, "offset": 24}] * 2)


def _make(strategy: str, seed: int, depth: int = 2, cfg: dict = CFG):
    torch.manual_seed(seed)
    model = ByteGPT(context=8, width=16, depth=depth, heads=2)
    wrapped = parallel.wrap(model, StrategyConfig(type=strategy), CPU)
    return model, wrapped, build_optimizer(wrapped, cfg)


def _train(wrapped, optimizer, steps: int) -> None:
    tokens = torch.randint(256, (4, 9), generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        wrapped(tokens)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()


def _full(model) -> dict[str, torch.Tensor]:
    return {
        name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
        for name, p in model.named_parameters()
    }


def _save(path: Path, strategy: str) -> dict[str, torch.Tensor]:
    """Trains 3 steps, saves, trains 2 more; the parameters at the end."""
    model, wrapped, optimizer = _make(strategy, seed=0)
    _train(wrapped, optimizer, 3)
    write(path, capture(wrapped, optimizer, PROGRESS, {"plan.json": make_plan(model, CFG).to_json()}))
    _train(wrapped, optimizer, 2)
    return _full(model)


def _resume(path: Path, strategy: str) -> dict[str, torch.Tensor]:
    model, wrapped, optimizer = _make(strategy, seed=1)
    load(path, wrapped, optimizer)
    _train(wrapped, optimizer, 2)
    assert model.head.weight is model.embedding.weight
    return _full(model)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(tmp_path, strategy):
    path = directory.step_directory(tmp_path, 3)
    uninterrupted = run_distributed(_save, path, strategy)[0]
    for resumed in run_distributed(_resume, path, strategy):
        assert all(torch.equal(resumed[name], uninterrupted[name]) for name in uninterrupted)


@pytest.mark.parametrize(("strategy", "world"), [("ddp", 2), ("fsdp", 4), ("single", 1)])
def test_a_checkpoint_of_fsdp_resumes_under_another_strategy_and_world(tmp_path, strategy, world):
    path = directory.step_directory(tmp_path, 3)
    uninterrupted = run_distributed(_save, path, "fsdp")[0]
    for resumed in run_distributed(_resume, path, strategy, world=world):
        for name, expected in uninterrupted.items():
            torch.testing.assert_close(resumed[name], expected, rtol=1e-5, atol=1e-6)


def _resume_with(path: Path, cfg: dict) -> list[tuple]:
    _, wrapped, optimizer = _make("fsdp", seed=1, cfg=cfg)
    load(path, wrapped, optimizer)
    _train(wrapped, optimizer, 1)
    return [(group["name"], group["lr"], group["weight_decay"]) for group in optimizer.param_groups]


def test_the_config_wins_over_the_checkpoint_also_with_other_groups(tmp_path):
    path = directory.step_directory(tmp_path, 3)
    run_distributed(_save, path, "fsdp")
    keys = {"embedding": {"lr_mult": 0.1}, "blocks.0": {"decay_mult": 2}}
    cfg = {**CFG, "lr": 5e-4, "paramwise_cfg": {"bypass_duplicate": True, "custom_keys": keys}}
    groups = run_distributed(_resume_with, path, cfg)[0]
    assert groups == [("embedding", 5e-5, 0.1), ("default", 5e-4, 0.1), ("blocks.0", 5e-4, 0.2)]


def _load_error(path: Path, depth: int) -> str:
    _, wrapped, optimizer = _make("ddp", seed=1, depth=depth)
    with pytest.raises(ConfigError) as error:
        load(path, wrapped, optimizer)
    return str(error.value)


def test_a_checkpoint_of_another_model_is_refused_by_name(tmp_path):
    path = directory.step_directory(tmp_path, 3)
    run_distributed(_save, path, "ddp")
    assert "blocks.1.attention_norm.weight is gone" in run_distributed(_load_error, path, 1)[0]
    assert "blocks.2.attention_norm.weight is new" in run_distributed(_load_error, path, 3)[0]


def _draw() -> tuple[float, float, float, float]:
    return torch.rand(1).item(), random.random(), random.gauss(0, 1), np.random.standard_normal()


def _rng_after_load(path: Path) -> bool:
    _, wrapped, optimizer = _make("ddp", seed=7)
    _draw()  # leaves the second of a pair of normal numbers in Python's and NumPy's state
    write(path, capture(wrapped, optimizer, PROGRESS, {}))
    expected = _draw()
    torch.manual_seed(99)
    load(path, wrapped, optimizer)
    return _draw() == expected


def test_the_random_states_of_every_rank_are_restored(tmp_path):
    assert run_distributed(_rng_after_load, tmp_path / "checkpoints" / "step_00000001") == [True, True]


def _resume_with_sgd(path: Path) -> bool:
    """Whether an optimizer whose state is left starts afresh; it trains in either case."""
    cfg = {"type": "SGD", "lr": 1e-3, "momentum": 0.9, "paramwise_cfg": {"bypass_duplicate": True}}
    _, wrapped, optimizer = _make("fsdp", seed=1, cfg=cfg)
    load(path, wrapped, optimizer, leave=[name for g in optimizer.param_groups for name in g["param_names"]])
    fresh = not optimizer.state
    _train(wrapped, optimizer, 1)
    return fresh


def test_state_that_is_left_is_not_loaded(tmp_path):
    path = directory.step_directory(tmp_path, 3)
    run_distributed(_save, path, "fsdp")
    assert run_distributed(_resume_with_sgd, path) == [True] * 2


class Counting(torch.optim.SGD):
    """Keeps a plain int, as many optimizers do; stateless but for it."""

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["calls"] = self.state[parameter].get("calls", 0) + 1
        return super().step(closure)


def _calls_after_load(path: Path) -> set[int]:
    cfg = {"type": f"{__name__}.Counting", "lr": 1e-3, "paramwise_cfg": {"bypass_duplicate": True}}
    _, wrapped, optimizer = _make("ddp", seed=0, cfg=cfg)
    _train(wrapped, optimizer, 3)
    write(path, capture(wrapped, optimizer, PROGRESS, {}))
    _, wrapped, optimizer = _make("ddp", seed=0, cfg=cfg)
    load(path, wrapped, optimizer)
    return {state["calls"] for state in optimizer.state.values()}


def test_plain_numbers_of_an_optimizer_come_back_as_they_were(tmp_path):
    assert run_distributed(_calls_after_load, tmp_path / "step_00000001") == [{3}, {3}]


def _resume_frozen(path: Path, first: str, then: str) -> set[int]:
    """The steps that the optimizer counts after one more, where another part is frozen than before."""
    for frozen in (first, then):
        torch.manual_seed(0)
        model = ByteGPT(context=8, width=16, depth=2, heads=2)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(frozen))
        wrapped = parallel.wrap(model, StrategyConfig(type="fsdp"), CPU)
        optimizer = build_optimizer(wrapped, CFG)
        if frozen == first:
            _train(wrapped, optimizer, 3)
            write(path, capture(wrapped, optimizer, PROGRESS, {}))
    assert load(path, wrapped, optimizer) == []
    _train(wrapped, optimizer, 1)
    return {int(state["step"]) for state in optimizer.state.values()}


def test_a_parameter_that_is_trained_only_now_starts_afresh(tmp_path):
    assert run_distributed(_resume_frozen, tmp_path / "step_00000003", "blocks.0", "blocks.1") == [{1, 4}] * 2
