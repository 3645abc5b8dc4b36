"""A model's tensors and those of a checkpoint, matched by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from distopt.checkpoint.rename import suggest
from distopt.errors import ConfigError, listed


def match(
    model_state: Mapping[str, torch.Tensor],
    stored: Mapping[str, TensorStorageMetadata],
    ties: Sequence[Sequence[str]],
    directory: Path,
    *,
    strict: bool,
) -> tuple[list[str], list[str]]:
    """The names that both have, and sentences on those that only one has.

    Args:
        model_state: The model's parameters and buffers, aliases included.
        stored: All tensors of the checkpoint: dotted key → what is there.
        ties: The names of each shared parameter of the model.
        directory: Of the checkpoint.
        strict: Whether both have to have the same.

    Raises:
        ConfigError: They have not, with the renaming that would do; or a tensor has another shape.
    """
    saved = {
        key.removeprefix("model."): tuple(entry.size)
        for key, entry in stored.items()
        if key.startswith("model.")
    }
    here = {name: tuple(value.shape) for name, value in model_state.items()}
    # Under a name that is new, a tied parameter is not.
    known = {name for names in ties if not saved.keys().isdisjoint(names) for name in names}
    new = {name: shape for name, shape in here.items() if name not in saved and name not in known}
    gone = {name: shape for name, shape in saved.items() if name not in here}
    both = [name for name in here if name in saved]
    reshaped = [f"{name} was {saved[name]}, is {here[name]}" for name in both if saved[name] != here[name]]
    if reshaped or (strict and (new or gone)):
        differences = [f"{name} is new" for name in new] + [f"{name} is gone" for name in gone] + reshaped
        more = f" and {len(differences) - 5} more" if len(differences) > 5 else ""
        others = "another work_dir, or resume: never with an empty one"
        renaming = [f"{old}: {now}" for old, now in suggest(saved, here).items()]
        raise ConfigError(
            "model",
            f"{directory} is a checkpoint of another model: {'; '.join(differences[:5])}{more}",
            allowed=others if reshaped else f"resume_strict: false takes what both have; {others}",
            suggestion=f"resume_rename: {{{listed(renaming)}}}" if renaming else None,
        )
    told = []
    if new:
        told.append(f"{_tensors(new)} not in the checkpoint, and kept at initial values: {listed([*new])}")
    if gone:
        told.append(f"{_tensors(gone)} only in the checkpoint, and dropped: {listed([*gone])}")
    return both, told


def _tensors(names: Mapping[str, object]) -> str:
    return f"{len(names)} {'tensor' if len(names) == 1 else 'tensors'}"
