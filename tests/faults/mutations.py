"""Ways to damage a checkpoint, and whether it is found."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from distopt.checkpoint import directory, manifest

Mutation = Callable[[Path, random.Random], None]


def _file(checkpoint: Path, chance: random.Random) -> Path:
    """Any of its files; those of tensors as often as all the others."""
    files = sorted(checkpoint.iterdir())
    tensors = [path for path in files if path.suffix == ".distcp"]
    return chance.choice(chance.choice([files, tensors]))


def truncate(checkpoint: Path, chance: random.Random) -> None:
    path = _file(checkpoint, chance)
    with path.open("r+b") as file:
        file.truncate(chance.randrange(path.stat().st_size))


def flip_a_bit(checkpoint: Path, chance: random.Random) -> None:
    path = _file(checkpoint, chance)
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def remove(checkpoint: Path, chance: random.Random) -> None:
    _file(checkpoint, chance).unlink()


def take_from_another(checkpoint: Path, chance: random.Random) -> None:
    """A file of an older checkpoint of the same run, where it differs."""
    older = checkpoint.with_name("step_00000004")
    differing = [
        path for path in sorted(checkpoint.iterdir()) if (older / path.name).read_bytes() != path.read_bytes()
    ]
    path = chance.choice(differing)
    shutil.copy(older / path.name, path)


def add(checkpoint: Path, chance: random.Random) -> None:
    (checkpoint / f"__{chance.randrange(2, 9)}_0.distcp").write_bytes(b"foreign")


def swap(checkpoint: Path, chance: random.Random) -> None:
    first, second = chance.sample(sorted(checkpoint.iterdir()), 2)
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


MUTATIONS: list[Mutation] = [truncate, flip_a_bit, remove, take_from_another, add, swap]


def verify(run: Path, folder: Path, mutate: Mutation, seed: int) -> bool:
    """Whether a mutation of the newest checkpoint of `run`, in a copy in `folder`, is found.

    Raises:
        AssertionError: It is not, and means something else than before.
    """
    checkpoints = shutil.copytree(run / "checkpoints", folder / "checkpoints")
    damaged = checkpoints / "step_00000012"
    before = {path.name: path.read_bytes() for path in damaged.iterdir()}
    mutate(damaged, random.Random(seed))
    after = {path.name: path.read_bytes() for path in damaged.iterdir()}
    found = directory.damage(damaged, share=(0, 2)) or directory.damage(damaged, share=(1, 2))
    if found is None:  # then it means the same: another space in the manifest, say
        assert {name for name in before | after if before.get(name) != after.get(name)} <= {manifest.NAME}
        assert json.loads(before[manifest.NAME]) == json.loads(after[manifest.NAME])
    return found is not None
