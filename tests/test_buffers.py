"""Buffers, and the modes of modules: the same model on all ranks wherever it is evaluated or saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from distopt import Runner, load_config, parallel
from tests.kit import run_distributed
from tests.runs import rows, write_config


class Buffers(nn.Module):
    """Everything on this rank is another than elsewhere, but for the constants."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.full((2, 2), float(rank)))
        self.register_buffer("running_var", torch.full((3,), rank, dtype=torch.bfloat16))
        self.register_buffer("lowest", torch.full((2,), torch.finfo(torch.float32).min))
        self.register_buffer("count", torch.tensor(7 + rank))
        self.register_buffer("mask", torch.tensor([rank == 0, rank == 1]))
        self.register_buffer("cache", torch.full((1 + rank,), float(rank)), persistent=False)


def _averaged() -> dict[str, list]:
    model = Buffers(dist.get_rank())
    parallel.average_buffers(model)
    return {name: buffer.tolist() for name, buffer in model.named_buffers()}


def test_running_statistics_become_means_and_other_persistent_buffers_those_of_rank_0():
    found = run_distributed(_averaged, world=3)
    assert [values.pop("cache") for values in found] == [[0.0], [1.0] * 2, [2.0] * 3]
    lowest = torch.finfo(torch.float32).min
    expected = {"running_mean": [[1.0] * 2] * 2, "running_var": [1.0] * 3, "lowest": [lowest] * 2}
    assert found == [expected | {"count": 7, "mask": [True, False]}] * 3


def _train(path: Path) -> tuple[dict[str, torch.Tensor], bool, bool]:
    runner = Runner(load_config(path))
    runner.train()
    buffers = {name: buffer.clone() for name, buffer in runner.model.named_buffers()}
    return buffers, runner.model.norm.training, runner.model.frozen.training


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_running_statistics_are_equal_on_all_ranks_and_the_same_under_every_strategy(tmp_path, strategy):
    common = {"model": {"type": "tests.components:Normed"}, "optimizer": {"type": "SGD", "lr": 0.01}}
    path = write_config(tmp_path, strategy=strategy, **common)
    (first, training, frozen), (second, _, _) = run_distributed(_train, path)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["norm.num_batches_tracked"] == 48  # 12 steps of 4 micro-batches, none of evaluation
    assert first["frozen.num_batches_tracked"] == 0
    assert (training, frozen) == (True, False)

    other = {"ddp": "fsdp", "fsdp": "ddp"}[strategy]
    (tmp_path / "other").mkdir()
    run_distributed(_train, write_config(tmp_path / "other", strategy=other, **common))
    evaluations = [
        [row["eval"]["loss"] for row in rows(run, "eval")]
        for run in (tmp_path / "run", tmp_path / "other" / "run")
    ]
    assert evaluations[0] == pytest.approx(evaluations[1], rel=1e-5)
