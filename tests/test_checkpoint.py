"""Checkpoints: committed by a rename, matched by FQN, resumed under another world and config."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from torch.distributed.tensor import DTensor

from distopt import ConfigError, build_optimizer, checkpoint, parallel
from distopt.models import ByteGPT
from tests.kit import run_distributed

CPU = torch.device("cpu")
CFG = {
    "type": "AdamW",
    "lr": 1e-3,
    "weight_decay": 0.1,
    "paramwise_cfg": {"norm_decay_mult": 0, "bypass_duplicate": True},
}
PROGRESS = checkpoint.Progress(step=3, epoch=1, offset=24, world_size=2)


def _make(strategy: str, seed: int, depth: int = 2, cfg: dict = CFG):
    torch.manual_seed(seed)
    model = ByteGPT(context=8, width=16, depth=depth, heads=2)
    wrapped = parallel.wrap(model, strategy, CPU)
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
    checkpoint.save(path, wrapped, optimizer, PROGRESS, {"plan.json": "{}"})
    _train(wrapped, optimizer, 2)
    return _full(model)


def _resume(path: Path, strategy: str) -> dict[str, torch.Tensor]:
    model, wrapped, optimizer = _make(strategy, seed=1)
    checkpoint.load(path, wrapped, optimizer)
    _train(wrapped, optimizer, 2)
    assert model.head.weight is model.embedding.weight
    return _full(model)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(tmp_path, strategy):
    path = checkpoint.step_directory(tmp_path, 3)
    uninterrupted = run_distributed(_save, path, strategy)[0]
    for resumed in run_distributed(_resume, path, strategy):
        assert all(torch.equal(resumed[name], uninterrupted[name]) for name in uninterrupted)


@pytest.mark.parametrize(("strategy", "world"), [("ddp", 2), ("fsdp", 4), ("single", 1)])
def test_a_checkpoint_of_fsdp_resumes_under_another_strategy_and_world(tmp_path, strategy, world):
    path = checkpoint.step_directory(tmp_path, 3)
    uninterrupted = run_distributed(_save, path, "fsdp")[0]
    for resumed in run_distributed(_resume, path, strategy, world=world):
        for name, expected in uninterrupted.items():
            torch.testing.assert_close(resumed[name], expected, rtol=1e-5, atol=1e-6)


def _resume_with(path: Path, cfg: dict) -> list[tuple]:
    _, wrapped, optimizer = _make("fsdp", seed=1, cfg=cfg)
    checkpoint.load(path, wrapped, optimizer)
    _train(wrapped, optimizer, 1)
    return [(group["name"], group["lr"], group["weight_decay"]) for group in optimizer.param_groups]


def test_the_config_wins_over_the_checkpoint_also_with_other_groups(tmp_path):
    path = checkpoint.step_directory(tmp_path, 3)
    run_distributed(_save, path, "fsdp")
    keys = {"embedding": {"lr_mult": 0.1}, "blocks.0": {"decay_mult": 2}}
    cfg = {**CFG, "lr": 5e-4, "paramwise_cfg": {"bypass_duplicate": True, "custom_keys": keys}}
    groups = run_distributed(_resume_with, path, cfg)[0]
    assert groups == [("embedding", 5e-5, 0.1), ("default", 5e-4, 0.1), ("blocks.0", 5e-4, 0.2)]


def _load_error(path: Path, depth: int) -> str:
    _, wrapped, optimizer = _make("ddp", seed=1, depth=depth)
    with pytest.raises(ConfigError) as error:
        checkpoint.load(path, wrapped, optimizer)
    return str(error.value)


def test_a_checkpoint_of_another_model_is_refused_by_name(tmp_path):
    path = checkpoint.step_directory(tmp_path, 3)
    run_distributed(_save, path, "ddp")
    assert "blocks.1.attention_norm.weight is gone" in run_distributed(_load_error, path, 1)[0]
    assert "blocks.2.attention_norm.weight is new" in run_distributed(_load_error, path, 3)[0]


def _rng_after_load(path: Path) -> float:
    _, wrapped, optimizer = _make("ddp", seed=7)
    checkpoint.save(path, wrapped, optimizer, PROGRESS, {})
    expected = torch.rand(1).item()
    torch.manual_seed(99)
    checkpoint.load(path, wrapped, optimizer)
    return torch.rand(1).item() - expected


def test_the_random_state_of_every_rank_is_restored(tmp_path):
    assert run_distributed(_rng_after_load, tmp_path / "checkpoints" / "step_00000001") == [0.0, 0.0]


def test_a_checkpoint_without_its_final_name_is_never_found(tmp_path):
    (tmp_path / "checkpoints" / "step_00000003.partial").mkdir(parents=True)
    assert checkpoint.newest(tmp_path) is None


def _committed(work_dir: Path, step: int) -> Path:
    path = checkpoint.step_directory(work_dir, step)
    path.mkdir(parents=True)
    checkpoint.Progress(step, 0, step * 8, 2).write(path)
    return path


def test_the_newest_is_the_one_with_the_most_steps(tmp_path):
    for step in (5, 100_000_000, 20):
        _committed(tmp_path, step)
    assert checkpoint.newest(tmp_path) == checkpoint.step_directory(tmp_path, 100_000_000)


def test_prune_keeps_the_last_and_removes_what_was_never_committed(tmp_path):
    for step in (1, 2, 3):
        _committed(tmp_path, step)
    (tmp_path / "checkpoints" / "step_00000004.partial").mkdir()
    checkpoint.prune(tmp_path, keep_last=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step_00000002",
        "step_00000003",
    ]


CONFIG = {"seed": 0, "work_dir": "a", "resume": "auto", "optimizer": {"lr": 1e-3}}


def _finished(work_dir: Path, config: dict, state: str) -> Path:
    path = _committed(work_dir, 4)
    (work_dir / "config.yaml").write_text(yaml.safe_dump(config))
    (work_dir / "status.json").write_text(json.dumps({"state": state}))
    return path


def test_a_missing_or_empty_run_directory_starts_afresh(tmp_path):
    assert checkpoint.find_start(tmp_path / "none", "auto", CONFIG) == checkpoint.Start()
    assert checkpoint.find_start(tmp_path, "never", CONFIG) == checkpoint.Start()


def test_an_unfinished_run_continues(tmp_path):
    path = _finished(tmp_path, CONFIG, "running")
    assert checkpoint.find_start(tmp_path, "auto", CONFIG) == checkpoint.Start(path, 4)


def test_a_finished_run_of_the_same_config_is_finished_wherever_it_lies(tmp_path):
    _finished(tmp_path, CONFIG, "done")
    assert checkpoint.find_start(tmp_path, "auto", {**CONFIG, "work_dir": "b"}).finished


def test_a_finished_run_with_another_config_continues_and_names_the_differences(tmp_path):
    _finished(tmp_path, CONFIG, "done")
    start = checkpoint.find_start(tmp_path, "auto", {**CONFIG, "optimizer": {"lr": 3e-4}})
    assert not start.finished
    assert start.differences == ("optimizer.lr: 0.001 → 0.0003",)


def test_never_refuses_a_directory_that_is_not_empty(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ConfigError, match=r"resume: .*not empty"):
        checkpoint.find_start(tmp_path, "never", CONFIG)


def test_a_path_that_holds_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"resume: no complete checkpoint"):
        checkpoint.find_start(tmp_path / "run", str(tmp_path), CONFIG)
