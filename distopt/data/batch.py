"""From samples to a batch, and what is said where the samples do not make one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.utils.data import default_collate

from distopt.data.blame import blaming
from distopt.errors import ConfigError, name_of

Collate = Callable[[list[Any]], Any]

_SHOWN = 8
"""So many samples, or parts of one, are written out."""


def make_batch(samples: list[Any], ids: Sequence[int], collate: Collate | None, key: str) -> Any:
    """Collates samples.

    Args:
        samples: At least one.
        ids: What the samples are called in messages.
        collate: None for torch's default_collate.
        key: The config key of the dataset.

    Raises:
        ConfigError: The user's collate raised, or default_collate cannot make a batch of these samples.
    """
    if collate is None:
        return _default_batch(samples, ids, key)
    with blaming("data.collate", f"{name_of(collate)}, given samples {listed(ids)},"):
        return collate(samples)


def keys(value: Any) -> set[Any] | None:
    """The keys of a mapping; None for anything else."""
    return set(value) if isinstance(value, Mapping) else None


def outline(value: Any) -> str:
    """What a sample or batch is made of: `{image: Tensor(3, 32, 32), label: int}`."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {outline(item)}" for name, item in value.items()) + "}"
    name = type(value).__name__
    if isinstance(value, tuple | list):
        parts = ", ".join(map(outline, value)) if len(value) <= _SHOWN else f"{len(value)} items"
        return f"{name}({parts})"
    return f"{name}({', '.join(map(str, value.shape))})" if hasattr(value, "shape") else name


def listed(ids: Sequence[int]) -> str:
    """`3, 17, 5`."""
    shown = ", ".join(map(str, ids[:_SHOWN]))
    return shown if len(ids) <= _SHOWN else f"{shown}, … ({len(ids)} in all)"


def _default_batch(samples: list[Any], ids: Sequence[int], key: str) -> Any:
    first = samples[0]
    if isinstance(first, Mapping):
        for i, sample in zip(ids, samples, strict=True):
            if keys(sample) != keys(first):  # default_collate would drop further keys without a word
                problem = f"sample {i} has other keys than sample {ids[0]}"
                raise ConfigError(key, problem, given=outline(sample), allowed=outline(first))
    try:
        return default_collate(samples)
    except Exception as error:
        for i, sample in zip(ids, samples, strict=True):
            if outline(sample) != outline(first):
                raise ConfigError(
                    key,
                    f"samples {ids[0]} and {i} do not fit into one batch",
                    given=f"{outline(first)} and {outline(sample)}",
                    allowed="samples of the same shapes and types, or a data.collate for these",
                ) from error
        raise ConfigError(
            key,
            f"torch's default_collate raised {type(error).__name__}: {error}",
            given=outline(first),
            allowed="tensors, arrays, numbers, and mappings, tuples and lists of these; or a data.collate",
        ) from error
