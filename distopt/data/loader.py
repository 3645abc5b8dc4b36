"""From a dataset to this rank's batches on this rank's device, for training and for evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from distopt.config import BatchLayout
from distopt.data.sampler import GlobalBatchSampler


class TrainLoader:
    """Iterates, without end, over optimizer steps: each a list of `accumulation` micro-batches on the device.

    Args:
        dataset: Map-style.
        layout: How the samples of a step are cut up.
        rank: This process's place in the world.
        seed: Of the order of samples and of the workers; the same on every rank.
        num_workers: Processes that read ahead; 0 reads in this one.
        device: Where batches go.

    Attributes:
        steps_per_epoch: Whole batches in the dataset; the rest of an epoch's order is left out.

    Raises:
        ConfigError: The batch is larger than the dataset.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        layout: BatchLayout,
        *,
        rank: int = 0,
        seed: int = 0,
        num_workers: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        samples = len(dataset)  # type: ignore[arg-type]
        self.steps_per_epoch = samples // layout.batch_size
        self._accumulation = layout.accumulation
        self._device = torch.device(device)
        self._sampler = GlobalBatchSampler(samples, layout, rank=rank, seed=seed)
        self._loader = _data_loader(dataset, self._sampler, num_workers, self._device, seed + rank)

    def __iter__(self) -> Iterator[list[Any]]:
        micro_batches = iter(self._loader)
        while True:
            step = [to_device(next(micro_batches), self._device) for _ in range(self._accumulation)]
            self._sampler.advance()
            yield step

    @property
    def epoch(self) -> int:
        """The 0-based epoch of the step last yielded."""
        return self._sampler.epoch

    def state_dict(self) -> dict[str, int]:
        """The place after the step last yielded, whatever has been read ahead."""
        return self._sampler.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues after the step at which `state` was taken; call it before iterating."""
        self._sampler.load_state_dict(state)


class EvalLoader:
    """Iterates once over this rank's part of a dataset, as `(batch, weight)` on the device.

    The dataset is cut into chunks in its own order, and rank r takes chunks r, r + world, …. All ranks yield
    equally often, because a sharded model's forward is a collective: a rank that runs out repeats a chunk
    with weight 0. Otherwise the weight is the number of samples, so that Σ weight × loss / Σ weight over all
    ranks is the mean over the dataset.

    Args:
        dataset: Map-style.
        layout: A chunk is one micro-batch; the last may have fewer samples.
        rank: This process's place in the world.
        num_workers: Processes that read ahead; 0 reads in this one.
        device: Where batches go.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        layout: BatchLayout,
        *,
        rank: int = 0,
        num_workers: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        samples = range(len(dataset))  # type: ignore[arg-type]
        size = layout.micro_batch_size
        chunks = [list(samples[start : start + size]) for start in samples[::size]]
        padding = -len(chunks) % layout.world
        weights = [len(chunk) for chunk in chunks] + [0] * padding
        chunks += chunks[:1] * padding
        self._weights = weights[rank :: layout.world]
        self._device = torch.device(device)
        self._loader = _data_loader(dataset, chunks[rank :: layout.world], num_workers, self._device, rank)

    def __len__(self) -> int:
        return len(self._weights)

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        for batch, weight in zip(self._loader, self._weights, strict=True):
            yield to_device(batch, self._device), weight


def to_device(batch: Any, device: torch.device) -> Any:
    """Moves the tensors of a batch: a tensor, or lists, tuples, named tuples and mappings of batches."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def _data_loader(
    dataset: Dataset[Any], batches: Any, num_workers: int, device: torch.device, seed: int
) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=device.type == "cuda",
        # Its own generator: from the global one, starting to iterate would shift the model's dropout.
        generator=torch.Generator().manual_seed(seed),
    )
