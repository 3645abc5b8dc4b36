"""Streams, which can only be iterated: what a rank draws of one, read whole or by shards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info
from torch.utils.data._utils import worker

from distopt import comm
from distopt.config import BatchLayout
from distopt.data.blame import blaming
from distopt.data.passes import START, Passes
from distopt.data.sampler import Draw, check_length, cut
from distopt.errors import ConfigError


def is_stream(dataset: object) -> bool:
    """Whether a dataset is iterated rather than indexed."""
    return isinstance(dataset, IterableDataset) or (
        hasattr(dataset, "__iter__") and not hasattr(dataset, "__getitem__")
    )


def check_alike(key: str, samples: int, epoch: int = 0) -> None:
    """Proves that every rank has read the same of a stream that all read whole, before it is used.

    Else a model that is sharded would wait for micro-batches that never come, and another would be trained
    with wrong weights. For the main thread, for it runs a collective.

    Args:
        key: The config key of the dataset.
        samples: In the global batch that comes next; 0 where the stream has ended.
        epoch: The pass that they are of.

    Raises:
        ConfigError: On every rank, naming the first that has something else than rank 0.
    """
    everyones = comm.differing([samples, epoch])
    if everyones is None:
        return
    first, *others = everyones
    rank, odd = next((rank, theirs) for rank, theirs in enumerate(others, 1) if theirs != first)
    raise ConfigError(
        key,
        "the stream is not the same on every rank",
        given=f"in the next batch rank {rank} has {_described(*odd)}, rank 0 {_described(*first)}",
        allowed="the same samples in the same order on every rank; or a stream with"
        " `shard(num_shards=, index=)`, for each rank to read its own part (docs/data.md)",
    )


@dataclass(kw_only=True)
class StreamReader:
    """Reads a stream that all ranks and workers read alike, and keeps what the rank draws of it.

    The ranks take the samples in turn. Were a rank's samples those of a contiguous part, all would have to be
    held until it is known whether the batch is a whole one, for a smaller one has other parts.

    Request n is for micro-step n % accumulation of global batch n // accumulation. Requests go up; one that
    does not begins anew at `place`.
    """

    dataset: Iterable[Any]
    layout: BatchLayout
    rank: int
    """This process's place in the world."""
    key: str
    """The config key of the dataset."""
    place: dict[str, Any] = field(default_factory=START.copy)
    """Where to begin."""
    endless: bool = True
    """Read pass after pass; else the answers to all requests behind the first pass are None."""
    drop_last: bool = False
    """Leave out a pass's last batch that is not whole."""
    _last: int | None = field(default=None, init=False)

    def read(self, request: int) -> Draw | None:
        """Raises ConfigError where the dataset raises or yields nothing."""
        step, micro_step = divmod(request, self.layout.accumulation)
        if self._last is None or request <= self._last:
            _worker_number()
            if not self.endless and "dataset" not in self.place:
                # where a pass that is broken off goes back to
                self.place = Passes(self.dataset, self.key, START).place()
            self._batches = self._global_batches()
            self._at, self._draws = -1, []
        while self._at < step:
            self._draws = next(self._batches, [])
            self._at += 1
        self._last = request
        return self._draws[micro_step] if self._draws else None

    def _global_batches(self) -> Iterator[list[Draw | None]]:
        size, world = self.layout.batch_size, self.layout.world
        mine = {0, *range(self.rank, size, world)}  # 0 for dummies
        passes = Passes(self.dataset, self.key, self.place)
        while True:
            epoch, offset = passes.epoch, passes.offset
            samples = passes.take(size, keep=mine)
            whole = len(samples) == size
            if self.endless and not whole and offset == 0:
                check_length(len(samples), self.layout)
            if samples and (whole or not self.drop_last):
                ids = [offset + i for rank in range(world) for i in range(rank, len(samples), world)]
                draws = cut(ids, self.layout, self.rank, epoch, passes.place())
                yield [
                    draw and draw._replace(content=[samples[i - offset] for i in draw.ids]) for draw in draws
                ]
            if not whole and not self.endless:
                return


@dataclass(kw_only=True)
class ShardReader:
    """Reads a stream by its shards, one for each worker of each rank; all batches are whole.

    Every request is for the next micro-batch of the worker's own shard. Workers answer in turn, and on a
    resume the first worker takes up the shard whose turn it is.
    """

    dataset: Any
    """What has `shard(num_shards=, index=)`."""
    layout: BatchLayout
    rank: int
    """This process's place in the world."""
    key: str
    """The config key of the dataset."""
    places: list[dict[str, Any]]
    """Where to begin, for each of this rank's shards."""
    turn: int
    """Whose turn is first."""
    _micro_batches: Iterator[Draw] | None = field(default=None, init=False)

    def read(self, request: int) -> Draw:
        """Raises ConfigError where the dataset raises or its shard yields nothing."""
        if self._micro_batches is None:
            shard = (self.turn + _worker_number()) % len(self.places)
            self._micro_batches = self._read_shard(shard)
        return next(self._micro_batches)

    def _read_shard(self, shard: int) -> Iterator[Draw]:
        shards = len(self.places)
        num_shards, index = self.layout.world * shards, self.rank * shards + shard
        call = f"{type(self.dataset).__name__}.shard(num_shards={num_shards}, index={index})"
        with blaming(self.key, call):
            part = self.dataset.shard(num_shards=num_shards, index=index)
        passes = Passes(part, self.key, self.places[shard])
        size = self.layout.micro_batch_size
        while True:
            epoch, offset = passes.epoch, passes.offset
            samples: list[Any] = []
            while len(samples) < size:
                samples += passes.take(size - len(samples))
            ids = range(offset, offset + size)
            yield Draw(ids, size, self.layout.batch_size, epoch, passes.place(), shard, samples)


def _described(samples: int, epoch: int) -> str:
    return f"{samples} samples of epoch {epoch}" if samples else "none"


def _worker_number() -> int:
    """This worker's number, which the user's dataset does not see from now on.

    A dataset that asks torch for it would read a part of its samples, of which only a part is kept.
    """
    info = get_worker_info()
    if info is None:
        return 0
    worker._worker_info = None
    return info.id
