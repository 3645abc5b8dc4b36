"""How one optimizer step's samples are laid out over ranks and micro-steps."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distopt.errors import ConfigError

if TYPE_CHECKING:
    from distopt.config.schema import Config
    from distopt.config.strategy import StrategyConfig


@dataclass(frozen=True)
class BatchLayout:
    """batch_size = world × micro_batch_size × accumulation.

    Attributes:
        batch_size: Samples per optimizer step, over all ranks.
        micro_batch_size: Samples per rank and forward.
        accumulation: Micro-steps per optimizer step.
        world: Ranks.
    """

    batch_size: int
    micro_batch_size: int
    accumulation: int
    world: int


def batch_layout(config: Config, world: int) -> BatchLayout:
    """Lays the global batch out over `world` ranks.

    Raises:
        ConfigError: The batch does not divide over the ranks, or a rank's share not into micro-batches; or
            several ranks are to train as a single one.
    """
    _check_world(config.strategy, world)
    batch_size = config.data.batch_size
    if batch_size % world:
        below = batch_size - batch_size % world
        raise ConfigError(
            "data.batch_size",
            f"cannot be divided over {world} ranks",
            given=batch_size,
            allowed=f"a multiple of {world}, such as "
            + " or ".join(map(str, filter(None, (below, below + world)))),
        )
    share = batch_size // world
    micro_batch_size = config.data.micro_batch_size or share
    if share % micro_batch_size:
        raise ConfigError(
            "data.micro_batch_size",
            f"does not divide the {share} samples that each of {world} ranks has of a batch of {batch_size}",
            given=micro_batch_size,
            allowed=", ".join(str(size) for size in range(1, share + 1) if share % size == 0),
        )
    return BatchLayout(batch_size, micro_batch_size, share // micro_batch_size, world)


def shard_size(strategy: StrategyConfig, world: int) -> int:
    """Ranks that share one copy of the model: under hsdp by default those of a node, as torchrun says."""
    if strategy.type == "hsdp":
        return strategy.shard_size or int(os.environ.get("LOCAL_WORLD_SIZE", world))
    return world if strategy.type == "fsdp" else 1


def _check_world(strategy: StrategyConfig, world: int) -> None:
    if strategy.type == "single" and world > 1:
        problem = f"is for one process, and there are {world}"
        raise ConfigError("strategy", problem, given="single", allowed="ddp, fsdp or hsdp")
    size = shard_size(strategy, world)
    sizes = [str(n) for n in range(1, world + 1) if world % n == 0]
    if world % size:
        problem = f"does not divide the world of {world}"
        raise ConfigError("strategy.shard_size", problem, given=size, allowed=", ".join(sizes))
    keep = strategy.reshard_after_forward
    if not isinstance(keep, bool) and size % keep:
        problem = f"does not divide the {size} ranks that share a copy of the model"
        raise ConfigError(
            "strategy.reshard_after_forward", problem, given=keep, allowed="true, false, or a divisor"
        )
