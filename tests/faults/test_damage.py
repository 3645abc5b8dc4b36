"""A damaged checkpoint is never loaded as a good one: the one before is, and that is said."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from distopt.checkpoint import directory, manifest
from tests.kit import run_distributed
from tests.runs import losses, rows, train, write_config

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


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A folder with a finished run, whose checkpoints are those of the steps 4, 8 and 12."""
    folder = tmp_path_factory.mktemp("whole")
    parameters = run_distributed(train, write_config(folder, strategy="fsdp", deterministic=True))[0]
    torch.save(parameters, folder / "parameters.pt")
    return folder


def _mutations(count: int) -> list:
    kinds = [MUTATIONS[seed % len(MUTATIONS)] for seed in range(count)]
    return [pytest.param(kind, seed, id=f"{kind.__name__}-{seed}") for seed, kind in enumerate(kinds)]


def _check_found(run: Path, folder: Path, mutate: Mutation, seed: int) -> None:
    checkpoints = shutil.copytree(run / "run" / "checkpoints", folder / "checkpoints")
    damaged = checkpoints / "step_00000012"
    before = {path.name: path.read_bytes() for path in damaged.iterdir()}
    mutate(damaged, random.Random(seed))
    after = {path.name: path.read_bytes() for path in damaged.iterdir()}
    found = directory.damage(damaged, share=(0, 2)) or directory.damage(damaged, share=(1, 2))
    if found is None:  # then it means the same: another space in the manifest, say
        assert {name for name in before | after if before.get(name) != after.get(name)} <= {manifest.NAME}
        assert json.loads(before[manifest.NAME]) == json.loads(after[manifest.NAME])


@pytest.mark.parametrize(("mutate", "seed"), _mutations(12))
def test_a_mutation_is_found(run, tmp_path, mutate, seed):
    _check_found(run, tmp_path, mutate, seed)


@pytest.mark.system
@pytest.mark.parametrize(("mutate", "seed"), _mutations(300))
def test_each_of_many_mutations_is_found(run, tmp_path, mutate, seed):
    _check_found(run, tmp_path, mutate, seed)


def test_an_untouched_checkpoint_is_good(run):
    for checkpoint in directory.committed(run / "run"):
        assert directory.damage(checkpoint, share=(0, 1)) is None


@pytest.mark.parametrize("mutate", [flip_a_bit, remove])
def test_a_run_continues_from_the_checkpoint_before_a_damaged_one(run, tmp_path, mutate):
    shutil.copytree(run / "run", tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "step_00000012"
    mutate(newest, random.Random(1))
    parameters = run_distributed(train, write_config(tmp_path, strategy="fsdp", deterministic=True))[0]
    expected = torch.load(run / "parameters.pt")
    assert all(torch.equal(parameters[name], value) for name, value in expected.items())
    assert directory.damage(newest, share=(0, 1)) is None  # saved again
    assert losses(tmp_path / "run") == losses(run / "run")
    assert [row["step"] for row in rows(tmp_path / "run")] == [row["step"] for row in rows(run / "run")]
    said = (tmp_path / "run" / "logs" / "rank0.log").read_text()
    assert "step_00000012 is damaged and passed over" in said
