"""From a request to a batch, in a worker or in the training process.

What fails on the way travels back as a value: an exception that a worker raises reaches the training process
as text in another exception, or not at all where its class has a constructor of its own.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from distopt.data.batch import Collate, keys, listed, make_batch, outline
from distopt.data.blame import blamed, blaming
from distopt.data.sampler import Draw
from distopt.errors import ConfigError


class Reader(Protocol):
    """Reads samples; lives where they are read."""

    key: str
    """The config key of the dataset."""

    def read(self, request: Any) -> Draw | None:
        """The draw that is asked for, with its samples; None where there is nothing to draw."""


class MapReader:
    """Reads a map-style dataset; a request is a draw without its samples, or None.

    What is random is a function of the seed, the epoch and the draw's first sample: the same in whichever
    process the draw is read, and after whatever other draws.
    """

    def __init__(self, dataset: Any, key: str, seed: int = 0) -> None:
        self.dataset = dataset
        self.key = key
        self.seed = seed

    def read(self, request: Draw | None) -> Draw | None:
        """Raises ConfigError where the dataset raises."""
        if request is None:
            return None
        _seed_all(self.seed, request.epoch, request.ids[0])
        return request._replace(content=self.samples(request.ids))

    def samples(self, ids: Sequence[int]) -> list[Any]:
        """Raises ConfigError where the dataset raises."""
        name = type(self.dataset).__name__
        samples: list[Any]
        if getattr(self.dataset, "__getitems__", None):
            call = f"{name}.__getitems__([{listed(ids)}])"
            with blaming(self.key, call):
                samples = list(self.dataset.__getitems__(ids))
            if len(samples) != len(ids):
                problem = f"{call} returned another number of samples than it was asked for"
                raise ConfigError(self.key, problem, given=len(samples), allowed=str(len(ids)))
            return samples
        samples = []
        for i in ids:
            try:
                samples.append(self.dataset[i])
            except Exception as error:
                raise blamed(self.key, f"{name}.__getitem__({i})", error) from error
        return samples


class Loader:
    """Answers requests in their order, by workers that read ahead.

    Args:
        reader: Reads the samples.
        requests: What the reader is asked for; iterated anew each time.
        collate: Makes a batch of samples; None for torch's default_collate.
        num_workers: Processes that read; 0 reads in this one.
        pin: Put batches into pinned memory.
        seed: Of the workers, where the reader does not seed them.
    """

    def __init__(
        self,
        reader: Reader,
        requests: Iterable[Any],
        collate: Collate | None,
        *,
        num_workers: int,
        pin: bool,
        seed: int,
    ) -> None:
        self._key = reader.key if collate is None else "data.collate"
        fetcher = _Fetcher(reader, collate, seeds_here=num_workers == 0 and isinstance(reader, MapReader))
        if num_workers == 0 and not pin:  # nothing is left for a DataLoader to do
            self._answers: Callable[[], Iterator[Any]] = lambda: map(fetcher.__getitem__, requests)
            return
        self._answers = DataLoader(
            fetcher,
            batch_size=None,  # the fetcher makes the batches
            collate_fn=_unchanged,
            sampler=requests,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=pin,
            # Its own generator: from the global one, starting to iterate would shift the model's dropout.
            generator=torch.Generator().manual_seed(seed),
        ).__iter__

    def __iter__(self) -> Iterator[Draw | None]:
        """The draws, each with its batch.

        Raises:
            ConfigError: Reading or collating failed, or a batch has other keys than the first one.
        """
        first: Draw | None = None
        for answer in self._answers():
            first = first or answer
            error = self._error(answer, first)
            if error:
                break
            yield answer
        else:
            return
        # The workers end with the last reference to them. Left to the garbage collector, as what an exception
        # refers to often is, they would be waited for in vain.
        del self._answers
        raise error

    def _error(self, answer: Draw | ConfigError | None, first: Any) -> ConfigError | None:
        if answer is None or isinstance(answer, ConfigError):
            return answer
        if keys(answer.content) == keys(first.content):
            return None
        return ConfigError(
            self._key,
            f"the batch of samples {listed(answer.ids)} has other keys than the first one",
            given=outline(answer.content),
            allowed=outline(first.content),
        )


class _Fetcher(Dataset[Draw | ConfigError | None]):
    """What the DataLoader takes for a dataset: a request in, a draw with its batch out.

    Args:
        reader: Reads the samples.
        collate: Makes a batch of them.
        seeds_here: Whether the reader seeds the generators of the training process. Then torch's on the CPU,
            which dropout draws from, is put back. Those of Python and NumPy stay as they were seeded: to
            keep Python's would take 40 µs of each batch.
    """

    def __init__(self, reader: Reader, collate: Collate | None, *, seeds_here: bool) -> None:
        self.reader = reader
        self.collate = collate
        self.seeds_here = seeds_here

    def __getitem__(self, request: Any) -> Draw | ConfigError | None:
        dropout = torch.default_generator.get_state() if self.seeds_here else None
        try:
            draw = self.reader.read(request)
            if draw is None:
                return None
            batch = make_batch(draw.content, draw.ids, self.collate, self.reader.key)
            return draw._replace(content=batch)
        except ConfigError as error:
            return error
        finally:
            if dropout is not None:
                torch.default_generator.set_state(dropout)


def _seed_all(seed: int, epoch: int, first: int) -> None:
    """Seeds the generators of Python, NumPy and torch."""
    random.seed(seed << 128 | epoch << 64 | first)  # every bit counts
    np.random.seed(random.getrandbits(32))
    # torch.manual_seed would seed the accelerators as well, which takes longer than all else here.
    torch.default_generator.manual_seed(random.getrandbits(63))


def _unchanged(answer: Any) -> Any:
    return answer
