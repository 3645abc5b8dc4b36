"""`distopt groups`: the table, its forms, what it needs and what it exits with."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from distopt import load_config, make_plan
from distopt.cli import main
from distopt.cli.model import model_without_memory
from distopt.monitor import open_console

ROOT = Path(__file__).parents[1]
CONFIG = """\
model: {type: ByteGPT, width: 16, depth: 2, heads: 2}
data:
  train: {type: TokenFile, path: nowhere.npy, context: 8}
  batch_size: 8
max_steps: 2
optimizer:
  type: AdamW
  lr: 1e-3
  weight_decay: 0.1
  paramwise_cfg:
    norm_decay_mult: 0
    bias_decay_mult: 0
    bypass_duplicate: true
    custom_keys:
      embedding: &tied {lr_mult: 0.5}
      head: *tied
"""
DIFFER = "optimizer.paramwise_cfg.custom_keys.head={}"
"""Makes the rules treat the two names of the tied matrix differently: a warning."""


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    """The name of a config without warnings, whose data is not there, in an otherwise empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    Path("cfg.yaml").write_text(CONFIG)
    return "cfg.yaml"


@pytest.fixture
def printed(cfg, capsys):
    """What `distopt groups` prints of the config with some arguments; it exits with 0 and writes nothing."""

    def printed(*args):
        assert main(["groups", cfg, *args]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert [path.name for path in Path().iterdir()] == [cfg]
        return out

    return printed


def test_the_table_is_the_one_of_a_runs_start(printed, cfg, capsys):
    table = printed()
    config = load_config(cfg)
    open_console(0).groups(make_plan(model_without_memory(config), config.optimizer).to_dict()["groups"])
    assert capsys.readouterr().out == table + "The progress line shows the lr of default.\n\n"


def test_overrides_are_followed(printed):
    assert "weight_decay: 0.1 × 0.5 (bias_decay_mult) = 0.05" in printed(
        "optimizer.paramwise_cfg.bias_decay_mult=0.5"
    )


def test_warnings_stand_below_the_table(printed):
    *_, empty, warning = printed(DIFFER).splitlines()
    assert empty == ""
    assert warning.startswith("warning: shared parameter, owned once, as embedding.weight: ")


def test_strict_turns_warnings_into_the_exit_status(cfg):
    assert main(["groups", cfg, "--strict"]) == 0
    assert main(["groups", cfg, DIFFER]) == 0
    assert main(["groups", cfg, DIFFER, "--strict"]) == 1
    assert main(["groups", cfg, DIFFER, "--strict", "--json"]) == 1


def test_params_lists_every_parameter_with_its_names_values_group_and_rule(printed):
    lines = printed("--params").split("\n\n")[1].splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["parameter", "lr", "wd", "group", "rule"],
        ["embedding.weight", "=", "head.weight", "0.0005", "0.1", "embedding", "embedding"],
        ["positions.weight", "0.001", "0.1", "default", "base", "values"],
    ]
    assert len(lines) == 1 + 28


def test_frozen_parameters_are_listed_as_in_no_group(printed):
    model = "model={type: 'tests.test_cli_groups:half_frozen'}"
    out = printed(model, "--params", "optimizer.paramwise_cfg.custom_keys={}")
    assert "\nfrozen, in no group: 0.weight, 0.bias\n" in out
    assert "\n0.weight       -    -  -        frozen\n" in out


def half_frozen():
    from torch import nn

    return nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2))


def talking():
    print("said by the model")
    return half_frozen()


def test_json_is_the_plan_and_its_warnings_and_nothing_else(cfg, capsys):
    custom_keys = "optimizer.paramwise_cfg.custom_keys={'0': {}}"
    assert main(["groups", cfg, "--json", "model={type: 'tests.test_cli_groups:talking'}", custom_keys]) == 0
    out, err = capsys.readouterr()
    config = load_config(cfg, ["model={type: 'tests.test_cli_groups:talking'}", custom_keys])
    plan = make_plan(half_frozen(), config.optimizer)
    assert json.loads(out) == {**plan.to_dict(), "warnings": list(plan.warnings)}
    assert len(plan.warnings) == 1
    assert err == "said by the model\n"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed=x", "override seed=x: seed: wrong type"),
        ("model.widht=3", "override model.widht=3: model.widht: unknown argument of ByteGPT"),
        ("optimizer.lr=-1", "override optimizer.lr=-1: optimizer.lr: wrong value"),
        ("optimizer.unmatched_keys=error", ""),
    ],
)
def test_a_mistake_is_one_message_with_its_place(cfg, capsys, override, said):
    text = CONFIG.replace("head: *tied", "haed: *tied") if not said else CONFIG
    Path(cfg).write_text(text)
    assert main(["groups", cfg, override]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(
        said or "cfg.yaml:16: optimizer.paramwise_cfg.custom_keys.haed: matches no parameter\n"
    )


def test_params_and_json_exclude_each_other(cfg):
    with pytest.raises(SystemExit) as caught:
        main(["groups", cfg, "--params", "--json"])
    assert caught.value.code == 2


def test_weights_that_no_machine_could_hold_take_no_memory(printed):
    assert "3.30T" in printed("model.width=65536", "model.depth=64")


def randomly_filled():
    import torch
    from torch import nn

    model = nn.Linear(2, 2)
    assert nn.init.normal_(model.weight) is model.weight.normal_() is model.weight
    assert model.weight.is_meta
    assert torch.empty(8, device="cpu").normal_().unique().numel() == 8
    return model


def test_random_values_are_made_only_of_tensors_with_memory(printed):
    printed("model={type: 'tests.test_cli_groups:randomly_filled'}", "optimizer.paramwise_cfg=null")


@pytest.mark.parametrize("command", ["groups", "explain"])
def test_help_needs_no_torch(command):
    code = f"""
import sys
from distopt.cli import main
try:
    main([{command!r}, "--help"])
except SystemExit as exit:
    assert exit.code == 0
assert not {{"torch", "rich"}} & set(sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


LLAMA_70B = """\
model:
  type: transformers:LlamaForCausalLM
  config:
    type: transformers:LlamaConfig
    num_hidden_layers: 80
    hidden_size: 8192
    intermediate_size: 28672
    num_attention_heads: 64
    num_key_value_heads: 8
    vocab_size: 128256
data: {train: {type: TokenFile, path: nowhere.npy}, batch_size: 8}
max_steps: 2
optimizer: {type: AdamW, lr: 1e-4, weight_decay: 0.1, paramwise_cfg: {norm_decay_mult: 0}}
"""


@pytest.mark.slow
def test_seventy_billion_parameters_take_less_than_a_gigabyte(cfg):
    pytest.importorskip("transformers")
    Path(cfg).write_text(LLAMA_70B)
    code = """
from distopt.cli import main
assert main(["groups", "cfg.yaml", "--strict"]) == 0
# ru_maxrss would begin with what the tests themselves have.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
    run = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    *table, peak_kib = run.stdout.splitlines()
    assert table[1].split() == ["default", "562", "70.6B", "100.0%", "0.0001", "0.1", "base", "values"]
    assert int(peak_kib) < 1e6


FROM_SCRATCH = {
    "bert_finetune": "{type: 'transformers:BertForSequenceClassification',"
    " config: {type: 'transformers:BertConfig'}}",
    "vit": "{type: 'transformers:ViTForImageClassification', config: {type: 'transformers:ViTConfig'}}",
}
"""In place of the models that shipped configs fetch."""


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_have_no_warnings(path, monkeypatch, capsys):
    monkeypatch.setenv("DATA", "nowhere")
    model = [f"model={FROM_SCRATCH[path.stem]}"] if path.stem in FROM_SCRATCH else []
    assert main(["groups", str(path), "--strict", *model]) == 0, capsys.readouterr()


def test_the_documented_commands_print_what_is_documented(cfg, capsys):
    page = (ROOT / "docs" / "groups.md").read_text()
    Path(cfg).write_text(re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1])
    commands = re.findall(r"```console\n\$ distopt (.*?)\n(.*?)```", page, re.DOTALL)
    assert [shlex.split(command)[0] for command, _ in commands].count("explain") >= 2
    for command, expected in commands:
        main(shlex.split(command))
        assert "".join(capsys.readouterr()).strip() == expected.strip()
