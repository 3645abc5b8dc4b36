"""Batches to the device, ahead of their use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def prefetch(items: Iterable[T], device: torch.device) -> Iterator[T]:
    """The items on the device; on CUDA each is copied while the one before is computed with."""
    if device.type != "cuda":
        yield from items
        return
    copies = _copied(items, torch.cuda.Stream(device), device)  # type: ignore[no-untyped-call]
    ahead = next(copies, None)
    while ahead is not None:
        item, done = ahead
        ahead = next(copies, None)
        torch.cuda.current_stream(device).wait_event(done)
        yield item


def to_device(batch: Any, device: torch.device) -> Any:
    """Moves what can be moved of a batch: lists, tuples and named tuples stay what they are.

    Any mapping becomes a dict; other objects move themselves, by their `to` where they have one.
    """
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if hasattr(batch, "to"):
        return batch.to(device)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def _copied(
    items: Iterable[T], stream: torch.cuda.Stream, device: torch.device
) -> Iterator[tuple[T, torch.cuda.Event]]:
    for item in items:
        # The copy may get the memory of a batch that is let go but still computed with. So it waits for all
        # that the device was asked to do so far: not for the item ahead, which is still to be handed out.
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            copy = to_device(item, device)
        yield copy, stream.record_event()
