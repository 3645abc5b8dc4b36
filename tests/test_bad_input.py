"""What a user can get wrong: one message that names the place, exit status 2, nothing written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distopt import cli
from distopt import train as worker
from tests.runs import CONFIG, write_config


def change(section: str, **values: Any) -> dict[str, Any]:
    return {section: {**CONFIG[section], **values}}


def data(**values: Any) -> dict[str, Any]:
    return change("data", **values)


EMPTY = {"type": "tests.components:Windows", "length": 0}
pytestmark = pytest.mark.filterwarnings("ignore:Unable to enable fault handler")  # pytest has taken stderr
BAD = {
    "unknown key": ({"stratgy": "ddp"}, "stratgy: unknown key", "did you mean: strategy?"),
    "unknown key below": (data(batch=1), "data.batch: unknown key", "did you mean: batch_size?"),
    "wrong type": (data(batch_size="16"), "data.batch_size: wrong type", "a whole number"),
    "wrong value": ({"strategy": "dpp"}, "strategy: wrong value", "did you mean: ddp?"),
    "unknown model": ({"model": {"type": "ByteGTP"}}, "model.type: unknown type", "did you mean: ByteGPT?"),
    "unknown optimizer": (change("optimizer", type="AdamWW"), "optimizer.type: unknown type", "mean: AdamW?"),
    "unknown constructor": (
        change("optimizer", constructor="DefaultConstructor"),
        "optimizer.constructor: unknown type",
        "mean: DefaultOptimWrapperConstructor?",
    ),
    "unknown schedule": ({"param_scheduler": {"type": "LinerLR"}}, "type: unknown type", "mean: LinearLR?"),
    "no such module": ({"model": {"type": "nowhere.net:Net"}}, "model.type: there is no module nowhere", ""),
    "unknown argument": (change("model", widht=8), "model.widht: unknown argument", "did you mean: width?"),
    "optimizer argument": (change("optimizer", beta=1), "optimizer.beta: unknown argument", "mean: betas?"),
    "refused by the optimizer": (
        change("optimizer", betas=[0.9]),
        "AdamW refuses its arguments: ",
        '"betas": [0.9]',
    ),
    "no such group": (
        {"param_scheduler": {"type": "LinearLR", "by_epoch": False, "groups": ["haed"]}},
        "param_scheduler.0.groups.0: matches no group",
        "default",
    ),
    "not a checkpoint": ({"resume": "/nowhere/step_00000001"}, "resume: no complete checkpoint", "step_NNN"),
    "missing argument": (
        {"model": {"type": "torch.nn:Linear", "in_features": 2}},
        "model.out_features: missing argument",
        "",
    ),
    "arguments that do not fit": (change("model", heads=3), "model.heads: does not divide", "given:    3"),
    "empty dataset": (data(train=EMPTY), "data.train: the dataset is empty", ""),
    "empty validation set": (data(val=EMPTY), "data.val: the dataset is empty", ""),
    "batch larger than the data": (data(batch_size=128), "data.batch_size: larger", "at most 64"),
    "nothing to train": ({"model": {"type": "torch.nn:Identity"}}, "model: no trainable parameters", ""),
    "unmatched custom key": (
        change("optimizer", paramwise_cfg={"bypass_duplicate": True, "custom_keys": {"haed": {}}}),
        "custom_keys.haed: matches no parameter",
        "did you mean: head?",
    ),
    "shared parameters": (
        change("optimizer", paramwise_cfg={"norm_decay_mult": 0}),
        "one parameter has several names: embedding.weight",
        "bypass_duplicate: true",
    ),
}


@pytest.mark.parametrize(("changes", "message", "hint"), BAD.values(), ids=BAD)
def test_a_mistake_is_one_message_with_its_place_and_status_2(tmp_path, capsys, changes, message, hint):
    path = write_config(tmp_path, **changes)
    check = cli.main(["check", str(path), "--full"])
    said = capsys.readouterr()
    assert (check, said.out) == (2, "")
    train = worker.main([str(path)])
    assert (train, capsys.readouterr().err) == (2, said.err)
    assert said.err.startswith(f"{path}:")
    assert said.err.count(message) == 1
    assert hint in said.err
    assert "Traceback" not in said.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("model: {type: ByteGPT\n", ":2: not valid YAML"),
        ("model: !!python/name:os.system\n", ":1: model: the tag"),
    ],
)
def test_text_that_is_no_plain_yaml_is_refused_with_its_line(tmp_path, capsys, text, place):
    path = tmp_path / "cfg.yaml"
    path.write_text(text)
    assert cli.main(["check", str(path)]) == worker.main([str(path)]) == 2
    first, second = capsys.readouterr().err.strip().split("\n\n")
    assert first == second
    assert first.startswith(f"{path}{place}")


def test_a_missing_file_is_named_with_the_nearest_one(tmp_path, capsys):
    write_config(tmp_path)
    assert cli.main(["check", str(tmp_path / "cgf.yaml")]) == 2
    assert worker.main([str(tmp_path / "cgf.yaml")]) == 2
    assert capsys.readouterr().err.count(f"did you mean: {tmp_path / 'cfg.yaml'}?") == 2


def test_a_world_that_does_not_divide_the_batch_is_refused(tmp_path, capsys, monkeypatch):
    path = write_config(tmp_path)
    assert cli.main(["check", str(path), "--nproc", "3"]) == 2
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "0")
    assert worker.main([str(path)]) == 2
    assert capsys.readouterr().err.count("data.batch_size: cannot be divided over 3 ranks") == 2


@pytest.mark.parametrize("below", ["taken/run", "taken"])
def test_a_work_dir_that_cannot_be_written_is_refused(tmp_path, capsys, below):
    (tmp_path / "taken").write_text("a file in the way")
    path = write_config(tmp_path, work_dir=str(tmp_path / below))
    assert cli.main(["check", str(path)]) == worker.main([str(path)]) == 2
    assert capsys.readouterr().err.count("work_dir: cannot be written") == 2
    assert (tmp_path / "taken").read_text() == "a file in the way"


def test_several_mistakes_are_told_at_once(tmp_path, capsys):
    path: Path = write_config(tmp_path, stratgy="ddp", seed=-1, **data(batch_size="x"))
    assert worker.main([str(path)]) == 2
    said = capsys.readouterr().err
    assert all(key in said for key in ("stratgy: ", "seed: ", "data.batch_size: "))
