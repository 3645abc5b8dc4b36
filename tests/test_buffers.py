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
    def __init__(self, rank: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((2, 2), float(rank)))
        self.register_buffer("low", torch.full((3,), rank, dtype=torch.bfloat16))
        self.register_buffer("count", torch.tensor(7 + rank))
        self.register_buffer("mask", torch.tensor([rank == 0, rank == 1]))


def _averaged() -> list:
    model = Buffers(dist.get_rank())
    parallel.average_buffers(model)
    return [buffer.tolist() for buffer in model.buffers()]


def test_floating_buffers_become_means_and_others_those_of_rank_0():
    assert run_distributed(_averaged) == [[[[0.5] * 2] * 2, [0.5] * 3, 7, [True, False]]] * 2


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
