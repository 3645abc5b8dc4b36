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


def weights(checkpoint: Path, *, averaged: bool = False) -> dict[str, torch.Tensor]:
    """The model's whole tensors on the CPU: FQN → tensor, buffers and aliases included.

    Args:
        checkpoint: Its directory.
        averaged: Those of the `ema`; of frozen parameters, and buffers that have no average, the model's.

    Raises:
        ConfigError: It is damaged, or has no averaged weights.
    """
    damage = directory.damage(checkpoint, share=(0, 1))
    if damage is not None:
        raise ConfigError("", f"{checkpoint} cannot be used: {damage}", allowed="…/checkpoints/step_NNNNNNNN")
    reader = TensorReader(checkpoint)
    entries = reader.entries()
    keys = {key.removeprefix("model."): key for key in entries if key.startswith("model.")}
    if averaged:
        averages = {key.removeprefix("ema."): key for key in entries if key.startswith("ema.")}
        if not averages:
            problem = f"{checkpoint} has no averaged weights"
            raise ConfigError("", problem, allowed="a checkpoint of a run with `ema`")
        keys |= averages
        keys |= {alias: keys[owner] for owner, *aliases in _ties(checkpoint) for alias in aliases}
    state = {
        key: torch.empty(entries[key].size, dtype=entries[key].properties.dtype) for key in keys.values()
    }
    try:
        with warnings.catch_warnings(action="ignore"):  # that there is one process only
            state_dict_loader.load(state, storage_reader=reader, no_dist=True)
    except CheckpointException as error:
        raise ConfigError("", f"{checkpoint} cannot be read: {error}") from error
    return {fqn: state[key] for fqn, key in keys.items()}


def export(checkpoint: Path, out: Path, *, averaged: bool = False) -> int:
    """Writes the weights as safetensors, and returns how many tensors the file has.

    Of a tied parameter the file has one, under its first name; the others are in its metadata, as
    `safetensors.torch.load_model` looks for them there: alias → name.

    Raises:
        ConfigError: As `weights`.
        OSError: The file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = weights(checkpoint, averaged=averaged)
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
