"""Which samples a rank draws: the order of an epoch, and the cuts through a global batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from distopt.config import BatchLayout
from distopt.errors import ConfigError


class Draw(NamedTuple):
    """What one rank draws for one micro-step."""

    ids: Sequence[int]
    """Indices into the dataset, or positions in a stream's pass."""
    samples: int
    """How many of them count: all, or none where the draw is a dummy that only keeps step."""
    total: int
    """Samples in the whole global batch."""
    epoch: int
    place: dict[str, Any]
    """Where the next global batch begins, in the dataset or in the shard."""
    shard: int = 0
    """Which of this rank's shards of a stream."""
    content: Any = None
    """The samples, once they are read; then the batch that they make."""


def cut(
    ids: Sequence[int], layout: BatchLayout, rank: int, epoch: int, place: dict[str, Any]
) -> Iterator[Draw | None]:
    """Cuts a global batch into one rank's micro-batches; None for a micro-step in which no rank has a sample.

    Each rank has a contiguous part, and each of its micro-batches one of that; sizes differ by one at most.
    A rank with fewer samples than there are micro-steps ends with the first sample of all as a dummy.

    Args:
        ids: All of the global batch, at most `layout.batch_size`.
        layout: How a whole batch is cut up.
        rank: Whose micro-batches.
        epoch: Goes into each draw, as `place` does.
        place: Where the next global batch begins.
    """
    largest = -(-len(ids) // layout.world)
    micro_steps = -(-largest // layout.micro_batch_size)
    part = _share(ids, rank, layout.world)
    for micro_step in range(micro_steps):
        mine = _share(part, micro_step, micro_steps)
        yield Draw(mine or ids[:1], len(mine), len(ids), epoch, place)
    yield from [None] * (layout.accumulation - micro_steps)


def _share(ids: Sequence[int], index: int, count: int) -> Sequence[int]:
    """One of `count` contiguous parts; the first ones are larger by one where they cannot be equal."""
    size, larger = divmod(len(ids), count)
    start = index * size + min(index, larger)
    return ids[start : start + size + (index < larger)]


class GlobalBatchSampler:
    """The order of training samples: a function of (seed, epoch) alone, resumable anywhere in an epoch.

    An epoch is a permutation of all samples, cut into global batches, which are the same for every world size
    and micro-batch size. The last has what is left over.

    Args:
        length: Number of samples in the dataset.
        layout: How a global batch is cut up.
        rank: This process's place in the world.
        seed: The same on every rank; not negative.
        drop_last: Leave out a last batch that is not whole.

    Raises:
        ConfigError: The batch is larger than the dataset.
    """

    def __init__(
        self, length: int, layout: BatchLayout, *, rank: int = 0, seed: int = 0, drop_last: bool = False
    ) -> None:
        check_length(length, layout)
        self.length = length
        self.layout = layout
        self.rank = rank
        self.seed = seed
        self.drop_last = drop_last

    def draws(self, epoch: int = 0, offset: int = 0) -> Iterator[Draw | None]:
        """This rank's draws without end, `layout.accumulation` for each global batch.

        Args:
            epoch: Where to begin.
            offset: Samples of that epoch that are used up, under whatever world size and batch size.
        """
        while True:
            order = np.random.default_rng((self.seed, epoch)).permutation(self.length)
            yield from batches(
                order, self.layout, self.rank, epoch=epoch, offset=offset, drop_last=self.drop_last
            )
            epoch, offset = epoch + 1, 0


def batches(
    order: np.ndarray[Any, np.dtype[np.int64]],
    layout: BatchLayout,
    rank: int,
    *,
    epoch: int = 0,
    offset: int = 0,
    drop_last: bool = False,
) -> Iterator[Draw | None]:
    """One rank's draws from the rest of one epoch, whose samples come in `order`."""
    for start in range(offset, len(order), layout.batch_size):
        ids = order[start : start + layout.batch_size].tolist()
        if len(ids) == layout.batch_size or not drop_last:
            yield from cut(ids, layout, rank, epoch, {"epoch": epoch, "offset": start + len(ids)})


def check_length(length: int, layout: BatchLayout) -> None:
    """Raises ConfigError where `length` samples are less than one global batch."""
    if layout.batch_size > length:
        raise ConfigError(
            "data.batch_size",
            "larger than the training data",
            given=layout.batch_size,
            allowed=f"at most {length}",
        )
