"""A damaged checkpoint is never loaded as a good one: the one before is, and that is said."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch

from distopt.checkpoint import directory
from tests.faults.mutations import MUTATIONS, flip_a_bit, remove, verify
from tests.kit import run_distributed
from tests.runs import losses, rows, train, write_config


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


@pytest.mark.parametrize(("mutate", "seed"), _mutations(12))
def test_a_mutation_is_found(run, tmp_path, mutate, seed):
    verify(run / "run", tmp_path, mutate, seed)


@pytest.mark.system
@pytest.mark.parametrize(("mutate", "seed"), _mutations(300))
def test_each_of_many_mutations_is_found(run, tmp_path, mutate, seed):
    verify(run / "run", tmp_path, mutate, seed)


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
