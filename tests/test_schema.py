"""`distopt schema`: what an editor knows of a config file is what the loader takes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from distopt.cli import main
from distopt.config import load_config
from distopt.config.document import parse
from tests.configs import MINIMAL

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
SCHEMA = json.loads((ROOT / "configs/schema.json").read_text())


def examples() -> list:
    """The full examples of the documentation."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [
        pytest.param(block, id=f"{page.stem}-{i}")
        for page in pages
        for i, block in enumerate(re.findall(r"^```yaml.*?\n(.*?)^```", page.read_text(), re.M | re.S))
        if re.search(r"^(model|_base_):", block, re.M)
    ]


def errors(text: str) -> list[str]:
    """Where the schema finds fault with a text, as dotted keys."""
    data, _ = parse(text.replace("${", "$${"), "cfg.yaml")
    return [".".join(map(str, error.path)) for error in Draft202012Validator(SCHEMA).iter_errors(data)]


def without_installed(schema):
    """Less the short names that depend on which torch and torchmetrics are installed."""
    definitions = {
        name: {**section, "properties": {**section["properties"], "type": None}}
        for name, section in schema["$defs"].items()
        if name in ("loss", "metric", "OptimizerConfig")
    }
    return {**schema, "$defs": {**schema["$defs"], **definitions}}


def test_the_schema_that_ships_is_that_of_the_models(capsys):
    assert main(["schema"]) == 0
    printed = capsys.readouterr().out
    assert without_installed(json.loads(printed)) == without_installed(SCHEMA), (
        "distopt schema > configs/schema.json"
    )


def test_the_schema_is_one():
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_that_ships_is_valid_and_names_the_schema(path):
    text = path.read_text()
    assert text.startswith("# yaml-language-server: $schema=schema.json\n")
    assert errors(text) == []


@pytest.mark.parametrize("text", examples())
def test_every_example_of_the_documentation_is_valid(text):
    assert errors(text) == []


def test_a_resolved_config_is_valid(tmp_path):
    (tmp_path / "cfg.yaml").write_text(MINIMAL)
    assert errors(load_config(tmp_path / "cfg.yaml").to_yaml()) == []


@pytest.mark.parametrize(
    "text",
    [
        "strategy: fsdp",
        "strategy: {type: fsdp}",
        "param_scheduler: {type: LinearLR, start_factor: 0.1}",
        "param_scheduler: [{type: LinearLR}, {type: ConstantMomentum}]",
        "param_scheduler: null",
        "callbacks: {type: mine:Hook, every: 3}",
        "callbacks: [{type: EarlyStop, metric: loss}]",
        "eval: {every: 5, metrics: {accuracy: {type: Accuracy, task: binary}}}",
        "loss: {type: CrossEntropyLoss}",
        "loss: {type: torch.nn.functional.cross_entropy}",
        "clip_grad: null",
        "clip_grad: {max_value: 1}",
        "clip_grad: {max_value: 1, max_norm: null}",
        "max_epochs: null",
        "strategy: {type: ddp, find_unused_parameters: true}",
        "  constructor: mypkg.groups:Mine\n  paramwise_cfg: {mine: 1}",
        "seed: ${SEED}",
        "compile: ${COMPILE:-false}",
        "precision: ${PRECISION:-bf16}",
        "checkpoint: {every: 'x ${EVERY}'}",
    ],
)
def test_all_that_the_loader_admits_is_valid(text):
    assert errors(MINIMAL + text) == []


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("seeed: 1", ""),
        ("seed: x", "seed"),
        ("seed: -1", "seed"),
        ("deterministic: 1", "deterministic"),
        ("precision: fp8", "precision"),
        ("strategy: tp", "strategy"),
        ("strategy: {type: ddp, shard: 1}", "strategy"),
        ("param_scheduler: LinearLR", "param_scheduler"),
        ("param_scheduler: [{end: 5}]", "param_scheduler.0"),
        ("param_scheduler: [{type: LinaerLR}]", "param_scheduler"),
        ("callbacks: [{type: EarlyStopp}]", "callbacks"),
        ("loss: {weight: 1}", "loss"),
        ("loss: {type: CrossEntropy}", "loss"),
        ("clip_grad: {max: 1}", "clip_grad"),
        ("clip_grad: {max_norm: 0}", "clip_grad"),
        ("clip_grad: {}", "clip_grad"),
        ("clip_grad: {max_norm: 1, max_value: 1}", "clip_grad"),
        ("max_epochs: 1", ""),
        ("eval: {metrics: {}}", "eval"),
        ("eval: {every: 1, metrics: {loss: {type: Accuracy}}}", "eval"),
        ("eval: {every: 1, metrics: {accuracy: 1}}", "eval"),
        ("log: {every: 0}", "log.every"),
        ("  paramwise_cfg: {norm_decay: 0}", "optimizer.paramwise_cfg"),
        ("  paramwise_cfg: {custom_keys: {head: 1}}", "optimizer.paramwise_cfg"),
        ("  constructor: Mine", "optimizer.constructor"),
        ("  _delete_: 1", "optimizer._delete_"),
        ("_delete_: true", ""),
        ("_base_: 1", "_base_"),
    ],
)
def test_what_the_loader_refuses_is_not_valid(text, key):
    assert key in errors(MINIMAL + text)


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("model: {type: ByteGPT}\n", ""),
        ("  batch_size: 8\n", "data"),
        ("max_steps: 10\n", ""),
        ("  type: AdamW\n", "optimizer"),
    ],
)
def test_what_has_to_be_given_may_come_from_a_base_alone(line, key):
    text = MINIMAL.replace(line, "")
    assert errors(text) == [key]
    assert errors("_base_: base.yaml\n" + text) == []


def test_with_a_base_nothing_is_said_of_what_excludes_each_other():
    assert errors("_base_: base.yaml\nmax_epochs: 3\nmax_steps: null\nclip_grad: {}") == []


def test_a_base_and_what_is_deleted_of_it_is_valid():
    assert errors("_base_: [a.yaml, ~/b.yaml]\nmodel: {_delete_: true, type: a.b:Net}\neval: null") == []
    assert errors("_base_: a.yaml\noptimizer: {paramwise_cfg: {custom_keys: {_delete_: true}}}") == []


def test_every_key_has_its_text():
    undocumented = [
        f"{name}.{key}"
        for name, section in {"": SCHEMA, **SCHEMA["$defs"]}.items()
        for key, value in section["properties"].items()
        if not value.get("description")
    ]
    assert undocumented == []


def test_a_type_completes_to_the_names_there_are():
    for kind, name in {"model": "ByteGPT", "OptimizerConfig": "AdamW", "metric": "Accuracy"}.items():
        assert name in SCHEMA["$defs"][kind]["properties"]["type"]["anyOf"][0]["enum"]


@pytest.mark.parametrize("args", [["schema"], ["schema", "--help"]])
def test_the_command_imports_no_torch(args):
    code = f"""
import sys
from distopt.cli import main
try:
    status = main({args})
except SystemExit as exit:
    status = exit.code
sys.exit(status or "torch" in sys.modules)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0
    assert "schema.json" in ran.stdout or "$schema" in ran.stdout
