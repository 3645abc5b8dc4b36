"""The state of a run as named tensors: taken from its parts, and put back into them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

from distopt.checkpoint import extras, optimizer_state, rng
from distopt.checkpoint.directory import Progress
from distopt.checkpoint.reader import TensorReader
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
) -> Snapshot:
    """The state of a run as a checkpoint is to have it; its tensors are the live ones.

    Args:
        model: As trained: wrapped, sharded.
        optimizer: Whose groups have `param_names`.
        progress: How far the run is.
        documents: Further text files, name → content; `plan.json` tells `load` the optimizer's type.
        others: Further state: plain data, of which rank 0's is written, and tensors.

    Raises:
        ConfigError: The model's state is not all tensors, or that of others not plain data.
    """
    others = others or {}
    tensors, values = optimizer_state.split(optimizer)
    return Snapshot(
        {
            "model": _model_state(model),
            "optim": tensors,
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
    directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer, *, optimizers: Mapping[str, str]
) -> list[str]:
    """Restores what `save` wrote, into a model and optimizer of any world size.

    Args:
        directory: Of the checkpoint.
        model: As trained: wrapped, sharded.
        optimizer: Whose groups have `param_names`.
        optimizers: FQN → the type of the optimizer that steps the parameter: the state of one that another
            type stepped is left.

    Returns:
        Sentences on what could not be restored; normally none.

    Raises:
        ConfigError: Where the checkpoint is of a model with other parameters, cannot be read, or holds
            anything but tensors.
    """
    reader = TensorReader(directory)
    stored = reader.entries()
    state: dict[str, Any] = {"model": _model_state(model)}
    _check_same_model(state["model"], stored, directory)
    before = _optimizers(_read_json(directory / "plan.json"))
    others = {
        fqn: (before[fqn], now)
        for fqn, now in optimizers.items()
        if _short(before.get(fqn, now)) != _short(now)
    }
    state["optim"] = optimizer_state.empty(optimizer, stored, leave=others.keys())
    own_rng = f"rng.{dist.get_rank()}."
    random_state = {
        key.removeprefix(own_rng): torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in stored.items()
        if key.startswith(own_rng)
    }
    state["rng"] = {str(dist.get_rank()): random_state}
    _read(state, reader, directory)
    set_model_state_dict(model, state["model"])
    rng.restore(random_state)
    values = _read_json(directory / _OPTIMIZER_VALUES)
    kept = {fqn: value for fqn, value in values.items() if fqn not in others}
    optimizer_state.restore(optimizer, state["optim"], kept)
    counted = _read_json(directory / _OPTIMIZER_GROUPS).get("groups", [])
    optimizer_state.restore_groups(optimizer, counted, leave=others.keys())
    return [
        f"the optimizer of {count} parameters was {was}, is {now}: its state starts afresh"
        for (was, now), count in Counter(others.values()).items()
    ]


def load_others(directory: Path, here: extras.States) -> extras.States:
    """What `save` wrote of others, of those that are here.

    Args:
        directory: As for `load`.
        here: Their state now.
    """
    reader = TensorReader(directory)
    metadata = reader.read_metadata()
    values = _read_json(directory / _EXTRA_VALUES)
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


def _check_same_model(
    model_state: Mapping[str, torch.Tensor], stored: Mapping[str, TensorStorageMetadata], directory: Path
) -> None:
    saved = {key.removeprefix("model."): value for key, value in stored.items() if key.startswith("model.")}
    differences = [f"{name} is new" for name in model_state if name not in saved]
    differences += [f"{name} is gone" for name in saved if name not in model_state]
    differences += [
        f"{name} was {tuple(saved[name].size)}, is {tuple(value.shape)}"
        for name, value in model_state.items()
        if name in saved and saved[name].size != value.shape
    ]
    if differences:
        more = f" and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise ConfigError(
            "model",
            f"{directory} is a checkpoint of another model: {'; '.join(differences[:5])}{more}",
            allowed="another work_dir, or resume: never with an empty one",
        )


def _short(optimizer_type: str) -> str:
    return optimizer_type.removeprefix("torch.optim.")


def _optimizers(plan: Mapping[str, Any]) -> dict[str, str]:
    """FQN → the type of the optimizer that stepped the parameter, from a plan.json."""
    return {
        param["fqn"]: group.get("optimizer", plan["optimizer"])
        for group in plan.get("groups", [])
        for param in group["params"]
    }


def _read_json(path: Path) -> dict[str, Any]:
    """Empty where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError("resume", f"{path} cannot be read: {error}") from error
    return content if isinstance(content, dict) else {}
