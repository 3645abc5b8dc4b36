"""From a dataset to this rank's batches on this rank's device, for training and for evaluation."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch

from distopt.config import BatchLayout
from distopt.data.batch import Collate, make_batch
from distopt.data.device import prefetch
from distopt.data.fetch import Loader, MapReader, Reader
from distopt.data.passes import START
from distopt.data.sampler import Draw, GlobalBatchSampler, batches, check_length
from distopt.data.stream import ShardReader, StreamReader, check_alike, is_stream
from distopt.errors import ConfigError

_WITHOUT_END = range(sys.maxsize)  # and, unlike itertools.count, iterated as often as one likes


class MicroBatch(NamedTuple):
    """What one rank's model is given in one forward."""

    batch: Any
    samples: int
    """This rank's; 0 for a dummy that only keeps step with the other ranks."""
    ids: Sequence[int] = ()
    """Which they are: indices into the dataset, or positions in a stream's pass."""


class Step(NamedTuple):
    """What one rank is given for one optimizer step; all ranks have equally many micro-batches."""

    micro_batches: list[MicroBatch]
    samples: int
    """In the global batch, over all ranks."""


class TrainLoader:
    """Iterates, without end, over optimizer steps, whose batches are on the device.

    Args:
        dataset: Map-style, or a stream (docs/data.md).
        layout: How the samples of a step are cut up.
        rank: This process's place in the world.
        seed: Of the order of samples and of the workers; the same on every rank.
        num_workers: Processes that read ahead; 0 reads in this one.
        device: Where batches go.
        collate: Makes a batch of a list of samples; None for torch's default_collate.
        drop_last: Leave out an epoch's last batch where it is not whole.

    Attributes:
        steps_per_epoch: None for a stream that has no length.
        epoch: The 0-based epoch of the step last yielded.

    Raises:
        ConfigError: The batch is larger than the dataset; while iterating, whatever goes wrong in the user's
            dataset and collate, or ranks that read different streams.
    """

    def __init__(
        self,
        dataset: Any,
        layout: BatchLayout,
        *,
        rank: int = 0,
        seed: int = 0,
        num_workers: int = 0,
        device: torch.device | str = "cpu",
        collate: Collate | None = None,
        drop_last: bool = False,
    ) -> None:
        self._dataset = dataset
        self._layout = layout
        self._rank = rank
        self._seed = seed
        self._num_workers = num_workers
        self._device = torch.device(device)
        self._collate = collate
        self._drop_last = drop_last
        self._streams = is_stream(dataset)
        self._shards = max(1, num_workers) if self._streams and hasattr(dataset, "shard") else 0
        count = length(dataset)
        self.steps_per_epoch: int | None = None
        if count is not None:
            check_length(count, layout)
            whole, rest = divmod(count, layout.batch_size)
            self.steps_per_epoch = whole + (rest > 0 and not drop_last and not self._shards)
        self.epoch = 0
        self._state: dict[str, Any] = START
        if self._shards:
            self._state = {"epoch": 0, "turn": 0, "shards": [START] * self._shards}

    def __iter__(self) -> Iterator[Step]:
        for step, epoch, state in prefetch(self._steps(), self._device):
            self.epoch, self._state = epoch, state
            yield step

    def first_batch(self) -> Any | None:
        """The first samples, as many as in a micro-batch, as a batch, not on the device; None for a stream.

        Raises:
            ConfigError: The dataset or the collate raised.
        """
        return _first_batch(self._dataset, "data.train", self._layout, self._collate)

    def state_dict(self) -> dict[str, Any]:
        """The place after the step last yielded, whatever has been read ahead: plain data, of this rank."""
        return self._state

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Continues after the step at which `states` were taken; call it before iterating.

        Args:
            states: Of all ranks there were, in their order.

        Raises:
            ConfigError: The dataset was read in another number of shards.
        """
        shards = [place for state in states for place in state.get("shards", [])]
        are, were = self._layout.world * self._shards, len(shards)
        if are != were:
            raise ConfigError(
                "data.train",
                "the stream was read in another number of shards (one for each worker of each rank)",
                given=f"{are}, where the checkpoint has {were}",
                allowed="ranks × data.num_workers as they were; or a new work_dir, to start anew",
            )
        self._state = states[0]  # but for its shards the same on every rank
        self.epoch = self._state["epoch"]
        if self._shards:
            mine = shards[self._rank * self._shards :][: self._shards]
            self._state = self._state | {"turn": self._state["turn"] % self._shards, "shards": mine}

    def _steps(self) -> Iterator[tuple[Step, int, dict[str, Any]]]:
        """Each step with its epoch and the state after it."""
        state = self._state
        draws = iter(self._loader(state))
        while True:
            drawn = [draw for draw in islice(draws, self._layout.accumulation) if draw]
            for draw in drawn:
                state = self._after(state, draw)
            if self._streams and not self._shards:
                check_alike("data.train", drawn[0].total, drawn[0].epoch)
            # An array, for a list would be taken to the device one by one.
            micro_batches = [MicroBatch(draw.content, draw.samples, array("q", draw.ids)) for draw in drawn]
            yield Step(micro_batches, drawn[0].total), drawn[-1].epoch, state

    def _after(self, state: dict[str, Any], draw: Draw) -> dict[str, Any]:
        if not self._shards:
            return draw.place
        shards = list(state["shards"])
        shards[draw.shard] = draw.place
        return {"epoch": draw.epoch, "turn": (draw.shard + 1) % self._shards, "shards": shards}

    def _loader(self, state: dict[str, Any]) -> Loader:
        dataset, layout, rank, key = self._dataset, self._layout, self._rank, "data.train"
        reader: Reader
        requests: Iterable[Any] = _WITHOUT_END
        if self._shards:
            places, turn = state["shards"], state["turn"]
            reader = ShardReader(dataset=dataset, layout=layout, rank=rank, key=key, places=places, turn=turn)
        elif self._streams:
            reader = StreamReader(
                dataset=dataset, layout=layout, rank=rank, key=key, place=state, drop_last=self._drop_last
            )
        else:
            reader = MapReader(dataset, key, self._seed)
            sampler = GlobalBatchSampler(
                len(dataset), layout, rank=rank, seed=self._seed, drop_last=self._drop_last
            )
            requests = sampler.draws(state["epoch"], state["offset"])
        return Loader(
            reader,
            requests,
            self._collate,
            num_workers=self._num_workers,
            pin=self._device.type == "cuda",
            seed=self._seed + rank,
        )


class EvalLoader:
    """Iterates once over this rank's part of a dataset, as micro-batches on the device.

    The dataset is cut in its own order: of each world × micro_batch_size samples a rank has its part. All
    ranks yield equally often, because a sharded model's forward is a collective: a rank without a sample gets
    a dummy.

    Args:
        dataset: Map-style, or a stream, of which each rank and worker reads the whole.
        layout: For its world and its micro-batches.
        rank: This process's place in the world.
        num_workers: Processes that read ahead; 0 reads in this one.
        device: Where batches go.
        collate: Makes a batch of a list of samples; None for torch's default_collate.

    Raises:
        ConfigError: While iterating: whatever goes wrong in the user's dataset and collate, or ranks that
            read different streams.
    """

    def __init__(
        self,
        dataset: Any,
        layout: BatchLayout,
        *,
        rank: int = 0,
        num_workers: int = 0,
        device: torch.device | str = "cpu",
        collate: Collate | None = None,
    ) -> None:
        world, size = layout.world, layout.micro_batch_size
        layout = BatchLayout(world * size, size, accumulation=1, world=world)
        reader: Reader
        requests: Iterable[Any] = _WITHOUT_END
        self._streams = is_stream(dataset)
        if self._streams:
            reader = StreamReader(dataset=dataset, layout=layout, rank=rank, key="data.val", endless=False)
        else:
            reader = MapReader(dataset, "data.val")
            requests = list(batches(np.arange(len(dataset)), layout, rank))
        self._dataset = dataset
        self._layout = layout
        self._collate = collate
        self._device = torch.device(device)
        self._loader = Loader(
            reader,
            requests,
            collate,
            num_workers=num_workers,
            pin=self._device.type == "cuda",
            seed=rank,
        )

    def __iter__(self) -> Iterator[MicroBatch]:
        return prefetch(self._micro_batches(), self._device)

    def first_batch(self) -> Any | None:
        """As `TrainLoader.first_batch`."""
        return _first_batch(self._dataset, "data.val", self._layout, self._collate)

    def _micro_batches(self) -> Iterator[MicroBatch]:
        for draw in self._loader:
            if self._streams:
                check_alike("data.val", draw.total if draw else 0)
            if draw is None:  # the end of a stream's pass
                return
            yield MicroBatch(draw.content, draw.samples)


def _first_batch(dataset: Any, key: str, layout: BatchLayout, collate: Collate | None) -> Any | None:
    if is_stream(dataset):
        return None
    ids = range(min(layout.micro_batch_size, len(dataset)))
    return make_batch(MapReader(dataset, key).samples(ids), ids, collate, key)


def length(dataset: Any) -> int | None:
    """Samples in a dataset; None for a stream that does not say."""
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):
        if is_stream(dataset):
            return None
        raise
