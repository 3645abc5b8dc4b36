"""The order of training samples: a function of (seed, epoch) alone, resumable anywhere in an epoch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from distopt.config import BatchLayout
from distopt.errors import ConfigError


class GlobalBatchSampler:
    """Yields this rank's micro-batches of indices, without end; use it as a DataLoader's `batch_sampler`.

    An epoch is a permutation of all samples, cut into global batches; an incomplete last one is dropped.
    Each rank takes a contiguous part of every global batch and cuts it into micro-batches. So the global
    batches are the same for every world size and micro-batch size.

    The sampler's place is `(epoch, offset)`, where `offset` counts the samples of the epoch that are used
    up. Iterating starts there but does not move it, since a loader draws ahead of what is trained on:
    `advance` moves it, by one global batch.

    Args:
        length: Number of samples in the dataset.
        layout: How a global batch is cut up.
        rank: This process's place in the world.
        seed: The same on every rank; not negative.

    Raises:
        ConfigError: The batch is larger than the dataset.
    """

    def __init__(self, length: int, layout: BatchLayout, *, rank: int = 0, seed: int = 0) -> None:
        if layout.batch_size > length:
            raise ConfigError(
                "data.batch_size",
                "larger than the training data",
                given=layout.batch_size,
                allowed=f"at most {length}",
            )
        self.length = length
        self.layout = layout
        self.rank = rank
        self.seed = seed
        self.epoch = 0
        self.offset = 0

    def __iter__(self) -> Iterator[list[int]]:
        epoch, offset = self.epoch, self.offset
        batch_size, share = self.layout.batch_size, self.layout.batch_size // self.layout.world
        while True:
            order = np.random.default_rng((self.seed, epoch)).permutation(self.length)
            for start in range(offset, self.length - batch_size + 1, batch_size):
                mine = order[start + self.rank * share : start + (self.rank + 1) * share]
                for micro_batch in mine.reshape(-1, self.layout.micro_batch_size):
                    yield micro_batch.tolist()
            epoch, offset = epoch + 1, 0

    def advance(self) -> None:
        """Moves the place past the next global batch."""
        if self.offset + self.layout.batch_size > self.length:
            self.epoch, self.offset = self.epoch + 1, 0
        self.offset += self.layout.batch_size

    def state_dict(self) -> dict[str, int]:
        """The place, valid for any world size, micro-batch size and batch size."""
        return {"epoch": self.epoch, "offset": self.offset}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Takes up a place that `state_dict` gave; the next iteration starts there."""
        self.epoch, self.offset = state["epoch"], state["offset"]
