"""The state of what is neither model nor optimizer (callbacks, the loss scale), in mappings of any depth.

Tensors are stored with the others; all else as JSON, since nothing in a checkpoint may be code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from distopt.errors import ConfigError

States = dict[str, dict[str, Any]]
"""Whose state → the state."""
Path = tuple[str, ...]
"""The keys that lead to a value."""


def tensors_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a state that is tensors, in mappings as they stood."""
    found: dict[str, Any] = {}
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            found[name] = value
        elif isinstance(value, Mapping) and (inner := tensors_of(value)):
            found[name] = inner
    return found


def values_of(states: States) -> str:
    """The rest, as JSON.

    Raises:
        ConfigError: A value that is no plain data, or a key that is no text.
    """
    for owner, state in states.items():
        try:
            if not isinstance(state, Mapping):
                raise TypeError(f"it is a {type(state).__name__}, and no mapping")
            plain = _without_tensors(state)
            read = json.loads(json.dumps(plain))
            if read != plain and repr(read) != repr(plain):  # NaN, which never equals itself, reads the same
                raise TypeError("its keys are not all text, or a tuple is in it")
        except (TypeError, ValueError) as error:
            problem = f"the state_dict of {owner} cannot be saved: {error}"
            key = owner if owner.startswith("callbacks") else "callbacks"
            raise ConfigError(key, problem, allowed="plain data and tensors") from None
    return json.dumps({owner: _without_tensors(state) for owner, state in states.items()})


def templates(stored: Mapping[Path, TensorStorageMetadata], here: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors to load one owner's into: those that are there already, whatever their layout, or new ones.

    Args:
        stored: Path in the state → what is stored there.
        here: The state as it is now; it may be without what it is about to get.
    """
    found: dict[str, Any] = {}
    for path, entry in stored.items():
        inner, now = found, here
        for name in path[:-1]:
            inner = inner.setdefault(name, {})
            now = now.get(name, {}) if isinstance(now, Mapping) else {}
        tensor = now.get(path[-1]) if isinstance(now, Mapping) else None
        if not isinstance(tensor, torch.Tensor) or tensor.shape != entry.size:
            tensor = torch.empty(entry.size, dtype=entry.properties.dtype)
        inner[path[-1]] = tensor
    return found


def merged(values: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Both parts as one state again."""
    whole = {**values, **tensors}
    for name in values.keys() & tensors.keys():
        whole[name] = merged(values[name], tensors[name])
    return whole


def _without_tensors(state: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _without_tensors(value) if isinstance(value, Mapping) else value
        for name, value in state.items()
        if not isinstance(value, torch.Tensor)
    }
