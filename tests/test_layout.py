"""The global batch, laid out over ranks and micro-steps."""

from __future__ import annotations

from typing import Any

import pytest

from distopt import Config, ConfigError
from distopt.config import StrategyConfig, batch_layout, shard_size, validate


def config(
    batch_size: int, micro_batch_size: int | None = None, strategy: str | dict[str, Any] = "ddp"
) -> Config:
    data = {"train": {"type": "D"}, "batch_size": batch_size, "micro_batch_size": micro_batch_size}
    content = {"work_dir": "run", "model": {"type": "M"}, "data": data, "max_steps": 1, "strategy": strategy}
    return validate(Config, {**content, "optimizer": {"type": "SGD"}})


@pytest.mark.parametrize(
    ("micro_batch_size", "world", "expected"),
    [(None, 1, (48, 1)), (None, 4, (12, 1)), (4, 4, (4, 3)), (6, 1, (6, 8))],
)
def test_a_batch_is_laid_out_over_ranks_and_micro_steps(micro_batch_size, world, expected):
    layout = batch_layout(config(48, micro_batch_size), world)
    assert (layout.micro_batch_size, layout.accumulation) == expected
    assert layout.world * layout.micro_batch_size * layout.accumulation == layout.batch_size == 48


def test_a_batch_that_the_world_does_not_divide_is_an_error_with_the_nearest_that_it_does():
    with pytest.raises(ConfigError, match="cannot be divided over 3 ranks") as caught:
        batch_layout(config(64), 3)
    assert (caught.value.key, caught.value.allowed) == (
        "data.batch_size",
        "a multiple of 3, such as 63 or 66",
    )


def test_a_batch_smaller_than_the_world_has_one_nearest():
    with pytest.raises(ConfigError) as caught:
        batch_layout(config(2), 8)
    assert caught.value.allowed == "a multiple of 8, such as 8"


def test_a_micro_batch_has_to_divide_each_ranks_share():
    with pytest.raises(ConfigError, match="does not divide the 12 samples") as caught:
        batch_layout(config(24, 8), 2)
    assert (caught.value.key, caught.value.allowed) == ("data.micro_batch_size", "1, 2, 3, 4, 6, 12")


def test_single_is_for_one_process():
    assert batch_layout(config(8, strategy="single"), 1).world == 1
    with pytest.raises(ConfigError, match="strategy: is for one process"):
        batch_layout(config(8, strategy="single"), 2)


@pytest.mark.parametrize(
    ("strategy", "world", "key"),
    [
        ({"type": "hsdp", "shard_size": 3}, 4, "strategy.shard_size"),
        ({"type": "hsdp", "shard_size": 8}, 4, "strategy.shard_size"),
        ({"type": "fsdp", "reshard_after_forward": 3}, 4, "strategy.reshard_after_forward"),
        ({"type": "hsdp", "shard_size": 2, "reshard_after_forward": 4}, 4, "strategy.reshard_after_forward"),
    ],
)
def test_a_strategy_that_the_world_cannot_have_is_an_error(strategy, world, key):
    with pytest.raises(ConfigError) as caught:
        batch_layout(config(8, strategy=strategy), world)
    assert caught.value.key == key


def test_a_copy_of_hsdp_is_on_the_ranks_of_a_node(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert shard_size(StrategyConfig(type="hsdp"), 8) == 2
    assert shard_size(StrategyConfig(type="hsdp", shard_size=4), 8) == 4
