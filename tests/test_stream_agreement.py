"""Streams that are not the same on every rank: told on all of them, neither trained on nor waited for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import IterableDataset

from distopt import ConfigError
from tests.kit import run_distributed
from tests.runs import rows, train
from tests.test_stream_runs import config

HERE = __name__
strategies = pytest.mark.parametrize("strategy", ["ddp", "fsdp"])


class PerRank(IterableDataset):
    """As many points on each rank as `lengths` says."""

    def __init__(self, lengths: list[int]) -> None:
        self.length = lengths[int(os.environ["RANK"])]

    def __iter__(self) -> Any:
        generator = torch.Generator().manual_seed(0)
        for label in range(self.length):
            yield torch.randn(2, generator=generator), label % 3


class Counted(PerRank):
    """Says how many they are."""

    def __len__(self) -> int:
        return self.length


class Sharded(PerRank):
    """Yields what its own rank has; says nothing of the whole."""

    def shard(self, num_shards: int, index: int) -> Any:
        return self


def stream(*lengths: int, kind: str = "PerRank") -> dict[str, Any]:
    return {"type": f"{HERE}:{kind}", "lengths": list(lengths)}


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        train(path)
    return str(caught.value)


def refusal(folder: Path, strategy: str, train: Any, val: Any = None) -> str:
    """What every rank says of such data, within seconds."""
    sections = {"train": train, "val": val, "batch_size": 16, "micro_batch_size": 2}
    data = {key: value for key, value in sections.items() if value}
    changes = {"strategy": strategy, "data": data, "eval": {"every": 1} if val else None}
    first, second = run_distributed(refused, config(folder, **changes), timeout=20)
    assert first == second
    return first


@strategies
@pytest.mark.parametrize(
    ("lengths", "given"),
    [
        ((20, 24), "rank 1 has 8 samples of epoch 0, rank 0 4 samples of epoch 0"),
        ((24, 20), "rank 1 has 4 samples of epoch 0, rank 0 8 samples of epoch 0"),
        ((16, 32), "rank 1 has 16 samples of epoch 0, rank 0 16 samples of epoch 1"),
    ],
)
def test_training_on_them_ends_before_the_first_batch_that_differs(tmp_path, strategy, lengths, given):
    said = refusal(tmp_path, strategy, stream(*lengths))
    assert said.startswith("data.train: the stream is not the same on every rank")
    assert given in said
    assert "shard(num_shards=, index=)" in said
    assert [row["step"] for row in rows(tmp_path / "run")] == [1]


@strategies
@pytest.mark.parametrize("lengths", [(20, 24), (4, 8), (8, 4)])
def test_evaluation_on_them_ends_at_the_first_batch_that_differs(tmp_path, strategy, lengths):
    said = refusal(tmp_path, strategy, stream(64, 64), stream(*lengths))
    assert said.startswith("data.val: the stream is not the same on every rank")
    assert "rank 1 has " in said


@pytest.mark.parametrize("key", ["data.train", "data.val"])
def test_lengths_that_differ_are_the_user_s_mistake(tmp_path, key):
    same, other = stream(64, 64), stream(32, 64, kind="Counted")
    said = refusal(tmp_path, "ddp", *((other, same) if key == "data.train" else (same, other)))
    assert said.startswith(f"{key}: the ranks do not agree on the number of ")
    assert "given:    rank 0: 32, rank 1: 64" in said
    assert not (tmp_path / "run").exists()


def test_shards_may_differ(tmp_path):
    data = {"train": stream(20, 24, kind="Sharded"), "batch_size": 16, "micro_batch_size": 2}
    run_distributed(train, config(tmp_path, data=data, eval=None))
    assert len(rows(tmp_path / "run")) == 12
