"""`distopt checkpoints` and `distopt export`: what a run left, listed, verified and taken out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_model

from distopt.cli import main
from distopt.models import ByteGPT
from tests.kit import run_distributed
from tests.runs import CONFIG, train, write_config


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    """The directory of a finished run of two ranks, and its parameters at the end."""
    folder = tmp_path_factory.mktemp("run")
    parameters = run_distributed(train, write_config(folder, strategy="fsdp"))[0]
    return folder / "run", parameters


def test_all_checkpoints_of_a_run_are_listed(run, capsys):
    assert main(["checkpoints", str(run[0])]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "checkpoint",
        "step_00000004",
        "step_00000008",
        "step_00000012",
    ]
    assert all(line.endswith("good") for line in lines[1:])


def test_as_json_they_tell_step_ranks_and_size(run, capsys):
    assert main(["checkpoints", str(run[0]), "--json"]) == 0
    newest = json.loads(capsys.readouterr().out)[-1]
    assert (newest["step"], newest["ranks"], newest["damage"]) == (12, 2, None)
    files = Path(newest["path"]).iterdir()
    assert newest["bytes"] == sum(path.stat().st_size for path in files if path.name != "manifest.json")


def test_a_damaged_one_is_told_and_the_status_says_so(tmp_path, run, capsys):
    checkpoint = tmp_path / "checkpoints" / "step_00000012"
    checkpoint.parent.mkdir()
    checkpoint.symlink_to(run[0] / "checkpoints" / "step_00000012")
    copied = tmp_path / "checkpoints" / "step_00000013"
    copied.mkdir()
    for path in checkpoint.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    content = bytearray((copied / "__1_0.distcp").read_bytes())
    content[len(content) // 2] ^= 1
    (copied / "__1_0.distcp").write_bytes(content)
    assert main(["checkpoints", str(tmp_path), "--quick"]) == 0
    assert main(["checkpoints", str(tmp_path)]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith("damaged: __1_0.distcp is not what was written: its checksum differs")


def test_exported_weights_are_those_of_the_end_and_load_into_the_bare_model(tmp_path, run, capsys):
    out = tmp_path / "model.safetensors"
    assert main(["export", str(run[0]), str(out)]) == 0
    assert "step_00000012" in capsys.readouterr().out
    model = ByteGPT(**{key: value for key, value in CONFIG["model"].items() if key != "type"})
    load_model(model, out)
    assert model.head.weight is model.embedding.weight
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, run[1][name])


def test_a_tied_weight_is_in_the_file_once_and_its_other_name_in_the_metadata(tmp_path, run):
    out = tmp_path / "model.safetensors"
    main(["export", str(run[0]), str(out)])
    with safe_open(out, "pt") as file:
        assert "embedding.weight" in file.keys()  # noqa: SIM118
        assert "head.weight" not in file.keys()  # noqa: SIM118
        assert file.metadata() == {"format": "pt", "head.weight": "embedding.weight"}


@pytest.mark.parametrize("command", ["checkpoints", "export"])
def test_what_is_no_run_is_an_error_of_the_users(command, tmp_path, capsys):
    out = [str(tmp_path / "out.safetensors")] if command == "export" else []
    assert main([command, str(tmp_path / "nothing"), *out]) == 2
    assert "nothing" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_an_error_of_the_users(run, tmp_path, capsys):
    assert main(["export", str(run[0]), str(tmp_path / "no" / "model.safetensors")]) == 2
    assert "cannot be written" in capsys.readouterr().err
