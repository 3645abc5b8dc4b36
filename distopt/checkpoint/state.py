"""The state of a run as named tensors: saved and loaded by torch.distributed.checkpoint.

Optimizer state is stored by FQN, without groups and without hyper-parameters: what a group is called, or
which weight decay it has, is the config's to say, also on a resume.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

from distopt.checkpoint.directory import PARTIAL, Progress
from distopt.errors import ConfigError

State = dict[str, dict[str, Any]]


def save(
    directory: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    documents: Mapping[str, str],
) -> None:
    """Writes and commits a checkpoint; every rank calls it and writes its part.

    Args:
        directory: Where it will be once it is complete.
        model: As trained: wrapped, sharded.
        optimizer: Whose groups have `param_names`.
        progress: How far the run is.
        documents: Further text files, name → content.
    """
    partial = directory.with_name(directory.name + PARTIAL)
    rank = dist.get_rank()
    state = {
        "model": get_model_state_dict(model),
        "optim": _optimizer_state(optimizer),
        "rng": {str(rank): _rng_state()},
    }
    state_dict_saver.save(state, checkpoint_id=partial)
    if rank == 0:
        progress.write(partial)
        for name, content in documents.items():
            (partial / name).write_text(content)
        partial.rename(directory)
    dist.barrier()


def load(directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Restores what `save` wrote, into a model and optimizer of any world size.

    Raises:
        ConfigError: Where the checkpoint is of a model with other parameters.
    """
    stored = FileSystemReader(directory).read_metadata().state_dict_metadata
    model_state = get_model_state_dict(model)
    _check_same_model(model_state, stored, directory)
    state: State = {"model": model_state, "optim": _empty_optimizer_state(optimizer, stored)}
    rank = str(dist.get_rank())
    if f"rng.{rank}.cpu" in stored:
        state["rng"] = {rank: _rng_state()}
    state_dict_loader.load(state, checkpoint_id=directory)
    set_model_state_dict(model, state["model"])
    _set_optimizer_state(optimizer, state["optim"])
    if "rng" in state:
        _set_rng_state(state["rng"][rank])


def _optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """FQN → the state of that parameter (`exp_avg`, `step`, …)."""
    named = _named_parameters(optimizer)
    return {
        fqn: dict(optimizer.state[parameter])
        for fqn, parameter in named.items()
        if parameter in optimizer.state
    }


def _named_parameters(optimizer: torch.optim.Optimizer) -> dict[str, nn.Parameter]:
    """In the order in which `Optimizer.state_dict` numbers them."""
    return {
        fqn: parameter
        for group in optimizer.param_groups
        for fqn, parameter in zip(group["param_names"], group["params"], strict=True)
    }


def _empty_optimizer_state(optimizer: torch.optim.Optimizer, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors to load into, laid out like the live parameters: a new optimizer has no state yet."""
    named = _named_parameters(optimizer)
    state: dict[str, Any] = {}
    for key, metadata in stored.items():
        fqn, _, name = key.removeprefix("optim.").rpartition(".")
        if not key.startswith("optim.") or fqn not in named:
            continue
        parameter = named[fqn]
        value: Any = None
        if isinstance(metadata, TensorStorageMetadata):
            dtype = metadata.properties.dtype
            if metadata.size == parameter.shape:
                value = torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
            else:
                value = torch.zeros(metadata.size, dtype=dtype)
        state.setdefault(fqn, {})[name] = value
    return state


def _set_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Tensors from the checkpoint; groups, and so every hyper-parameter, as the config has them."""
    whole = optimizer.state_dict()
    whole["state"] = {i: state[fqn] for i, fqn in enumerate(_named_parameters(optimizer)) if fqn in state}
    optimizer.load_state_dict(whole)


def _check_same_model(model_state: Mapping[str, Any], stored: Mapping[str, Any], directory: Path) -> None:
    saved = {key.removeprefix("model."): value for key, value in stored.items() if key.startswith("model.")}
    differences = [f"{name} is new" for name in model_state if name not in saved]
    differences += [f"{name} is gone" for name in saved if name not in model_state]
    differences += [
        f"{name} was {tuple(saved[name].size)}, is {tuple(value.shape)}"
        for name, value in model_state.items()
        if isinstance(saved.get(name), TensorStorageMetadata) and saved[name].size != value.shape
    ]
    if differences:
        more = f" and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise ConfigError(
            "model",
            f"{directory} is a checkpoint of another model: {'; '.join(differences[:5])}{more}",
            allowed="another work_dir, or resume: never with an empty one",
        )


def _rng_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_rng_state(state: Mapping[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
