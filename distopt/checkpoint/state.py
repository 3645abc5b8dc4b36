"""The state of a run as named tensors: taken from its parts, and put back into them."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)

from distopt import names
from distopt.checkpoint import extras, optimizer_state, rng
from distopt.checkpoint.directory import Progress
from distopt.checkpoint.matching import match
from distopt.checkpoint.reader import TensorReader
from distopt.checkpoint.rename import Renaming, renamed
from distopt.checkpoint.writer import Snapshot, first_line
from distopt.errors import ConfigError

_OPTIMIZER_VALUES = "optimizer.json"
_OPTIMIZER_GROUPS = "optimizer_groups.json"
_EXTRA_VALUES = "extras.json"


def capture(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    documents: Mapping[str, str],
    others: extras.States | None = None,
    *,
    averages: Mapping[str, torch.Tensor] | None = None,
) -> Snapshot:
    """The state of a run as a checkpoint is to have it; its tensors are the live ones.

    Args:
        model: As trained: wrapped, sharded.
        optimizer: Whose groups have `param_names`.
        progress: How far the run is.
        documents: Further text files, name → content.
        others: Further state: plain data, of which rank 0's is written, and tensors.
        averages: FQN → the averaged weight.

    Raises:
        ConfigError: The model's state is not all tensors, or that of others not plain data.
    """
    others = others or {}
    tensors, values = optimizer_state.split(optimizer)
    return Snapshot(
        {
            "model": _model_state(model),
            "optim": tensors,
            "ema": dict(averages or {}),
            "rng": {str(dist.get_rank()): rng.capture()},
            "extras": extras.tensors_of(others),
        },
        {
            **documents,
            **progress.document(),
            _OPTIMIZER_VALUES: json.dumps(values),
            _OPTIMIZER_GROUPS: json.dumps({"groups": optimizer_state.group_state(optimizer)}),
            _EXTRA_VALUES: extras.values_of(others),
        },
    )


def load(
    directory: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    leave: Container[str] = (),
    renaming: Renaming = MappingProxyType({}),
    strict: bool = True,
) -> list[str]:
    """Restores what `save` wrote, into a model and optimizer of any world size.

    Args:
        directory: Of the checkpoint.
        model: As trained: wrapped, sharded.
        optimizer: Whose groups have `param_names`.
        leave: FQNs of the parameters whose optimizer state is not for this optimizer.
        renaming: What is called otherwise in the checkpoint.
        strict: Whether the model and the checkpoint have to have the same tensors.

    Returns:
        Sentences on what only one of them has; none where strict.

    Raises:
        ConfigError: Where the checkpoint is of a model with other parameters, cannot be read, or holds
            anything but tensors.
    """
    reader = TensorReader(directory, renaming)
    stored = reader.entries()
    model_state = _model_state(model)
    ties = names.ties(names.visits(model))
    matched, told = match(model_state, stored, ties, directory, strict=strict)
    state: dict[str, Any] = {"model": {name: model_state[name] for name in matched}}
    owners = {alias: owner for owner, *aliases in ties for alias in aliases}
    state["optim"] = optimizer_state.empty(optimizer, stored, owners, leave)
    own_rng = f"rng.{dist.get_rank()}."
    random_state = {
        key.removeprefix(own_rng): torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in stored.items()
        if key.startswith(own_rng)
    }
    state["rng"] = {str(dist.get_rank()): random_state}
    _read(state, reader, directory)
    # What was not read is as initialised; `match` has judged that, and torch need not.
    set_model_state_dict(model, state["model"], options=StateDictOptions(strict=False))
    rng.restore(random_state)

    def owner(fqn: str) -> str:
        name = renamed(fqn, renaming)
        return owners.get(name, name)

    values = {owner(fqn): value for fqn, value in read_json(directory / _OPTIMIZER_VALUES).items()}
    kept = {fqn: value for fqn, value in values.items() if fqn not in leave}
    tensors = {owners.get(fqn, fqn): value for fqn, value in state["optim"].items()}
    optimizer_state.restore(optimizer, tensors, kept)
    counted = [
        {**group, "param_names": [owner(fqn) for fqn in group["param_names"]]}
        for group in read_json(directory / _OPTIMIZER_GROUPS).get("groups", [])
    ]
    optimizer_state.restore_groups(optimizer, counted, leave)
    return told


def has_averages(directory: Path) -> bool:
    """Whether the checkpoint has averaged weights."""
    return any(key.startswith("ema.") for key in TensorReader(directory).entries())


def load_averages(
    directory: Path,
    averages: Mapping[str, torch.Tensor],
    ties: Iterable[Sequence[str]],
    *,
    renaming: Renaming = MappingProxyType({}),
) -> list[str]:
    """Reads what the checkpoint has of averaged weights.

    Args:
        directory: As for `load`.
        averages: FQN → what to read into.
        ties: The FQNs of each shared parameter, of which `averages` has the first.
        renaming: As for `load`.

    Returns:
        The FQNs of those that it lacks, or has in another shape.
    """
    reader = TensorReader(directory, renaming)
    owners = {alias: owner for owner, *aliases in ties for alias in aliases}
    stored: dict[str, torch.Tensor] = {}
    for key, entry in reader.entries().items():
        name = key.removeprefix("ema.")
        average = averages.get(owners.get(name, name))
        if key.startswith("ema.") and average is not None and average.shape == entry.size:
            stored[name] = average
    if stored:
        _read({"ema": stored}, reader, directory)
    found = {owners.get(name, name) for name in stored}
    return [fqn for fqn in averages if fqn not in found]


def load_others(directory: Path, here: extras.States) -> extras.States:
    """What `save` wrote of others, of those that are here.

    Args:
        directory: As for `load`.
        here: Their state now.
    """
    reader = TensorReader(directory)
    metadata = reader.read_metadata()
    values = read_json(directory / _EXTRA_VALUES)
    paths = {path: key for key, path in (metadata.planner_data or {}).items() if path[0] == "extras"}
    found: extras.States = {}
    for owner in sorted(here.keys() & values.keys()):  # reading is a collective: all in one order
        stored = {
            path[2:]: cast(TensorStorageMetadata, metadata.state_dict_metadata[key])
            for path, key in paths.items()
            if path[1] == owner
        }
        tensors = extras.templates(stored, here[owner])
        if tensors:
            _read({"extras": {owner: tensors}}, reader, directory)
        found[owner] = extras.merged(values[owner], tensors)
    return found


def check_others(others: extras.States) -> None:
    """Raises ConfigError for what `save` could not write, hours before it would."""
    extras.values_of(others)


def _read(state: dict[str, Any], reader: TensorReader, directory: Path) -> None:
    """Reads into the tensors of `state`."""
    try:
        state_dict_loader.load(state, storage_reader=reader)
    except CheckpointException as error:
        raise ConfigError("resume", f"{directory} cannot be read: {first_line(error)}") from error


def _model_state(model: nn.Module) -> dict[str, torch.Tensor]:
    state: dict[str, Any] = get_model_state_dict(model)
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            problem = f"{name} of its state_dict is not a tensor, and could not be restored safely"
            raise ConfigError("model", problem, given=type(value).__name__)
    return state


def read_json(path: Path) -> dict[str, Any]:
    """One of a checkpoint's documents; empty where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError("resume", f"{path} cannot be read: {error}") from error
    return content if isinstance(content, dict) else {}
