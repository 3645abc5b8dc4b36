"""A model's weights, out of a checkpoint into one file that needs neither distopt nor several processes."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.api import CheckpointException

from distopt.checkpoint import directory
from distopt.checkpoint.reader import TensorReader
from distopt.errors import ConfigError


def weights(checkpoint: Path, prefix: str = "model") -> dict[str, torch.Tensor]:
    """The model's whole tensors on the CPU: FQN → tensor, buffers and aliases included.

    Args:
        checkpoint: Its directory.
        prefix: What of it; `ema` for the averaged weights, where there are some.

    Raises:
        ConfigError: It is damaged, or has nothing of that name.
    """
    damage = directory.damage(checkpoint, share=(0, 1))
    if damage is not None:
        raise ConfigError("", f"{checkpoint} cannot be used: {damage}", allowed="…/checkpoints/step_NNNNNNNN")
    reader = TensorReader(checkpoint)
    state = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in reader.entries().items()
        if key.startswith(f"{prefix}.")
    }
    if not state:
        raise ConfigError("", f"{checkpoint} has no {prefix} weights")
    try:
        with warnings.catch_warnings(action="ignore"):  # that there is one process only
            state_dict_loader.load(state, storage_reader=reader, no_dist=True)
    except CheckpointException as error:
        raise ConfigError("", f"{checkpoint} cannot be read: {error}") from error
    return {key.removeprefix(f"{prefix}."): tensor for key, tensor in state.items()}


def export(checkpoint: Path, out: Path, prefix: str = "model") -> int:
    """Writes the weights as safetensors, and returns how many tensors the file has.

    Of a tied parameter the file has one, under its first name; the others are in its metadata, as
    `safetensors.torch.load_model` looks for them there: alias → name.

    Raises:
        ConfigError: As `weights`.
        OSError: The file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = weights(checkpoint, prefix)
    aliases = {alias: owner for owner, *others in _ties(checkpoint) for alias in others}
    kept = {name: tensor for name, tensor in tensors.items() if name not in aliases}
    try:
        save_file(kept, out, metadata={"format": "pt", **aliases})  # under another name until it is complete
    except SafetensorError as error:
        raise OSError(str(error)) from error
    return len(kept)


def _ties(checkpoint: Path) -> list[list[str]]:
    plan = json.loads((checkpoint / "plan.json").read_text(encoding="utf-8"))
    ties: list[list[str]] = plan.get("ties", [])
    return ties
