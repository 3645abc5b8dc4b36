"""`distopt explain`: which rule decides on a parameter or group, and why the others do not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from distopt import load_config
from distopt.cli import main
from distopt.cli.model import model_without_memory
from distopt.optim import Constructor, Verdict
from distopt.optim.decide import decide
from distopt.optim.explain import contenders

CONFIG = """\
model: {type: "tests.test_cli_explain:Net"}
data: {train: {type: TokenFile, path: nowhere.npy}, batch_size: 8}
max_steps: 2
optimizer:
  type: SGD
  lr: 0.1
  weight_decay: 0.01
  paramwise_cfg:
    bypass_duplicate: true
    norm_decay_mult: 0
    bias_decay_mult: 0.5
    bias_lr_mult: 2
    custom_keys:
      head: {lr_mult: 10, momentum: 0.9}
      head.0: {decay_mult: 3}
      ead.0: {}
      ad.0.b: {lr_mult: 0}
      tied: {lr_mult: 4}
"""
KEYS = "optimizer.paramwise_cfg.custom_keys"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.body = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Sequential(nn.Linear(4, 2), nn.LayerNorm(2))
        self.embedding = nn.Embedding(3, 4)
        self.tied = nn.Linear(4, 3)
        self.tied.weight = self.embedding.weight


@pytest.fixture
def explained(tmp_path, monkeypatch, capsys):
    """The lines that `distopt explain` prints of a name."""
    monkeypatch.chdir(tmp_path)
    Path("cfg.yaml").write_text(CONFIG)

    def explained(*args):
        assert main(["explain", "cfg.yaml", *args]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert all(len(line) <= 80 for line in out.splitlines() if "override" not in line)
        return out

    return explained


def rules(page: str) -> list[list[str]]:
    """The words of each line of the rules."""
    return [line.split() for line in page.split("\nrules\n")[1].split("\n\n")[0].splitlines()]


def test_a_parameter_is_told_with_its_module_shape_and_group(explained):
    assert explained("body.weight").splitlines()[:4] == [
        "body.weight",
        "  module  Linear body",
        "  shape   4 × 4",
        "  group   default",
    ]


def test_values_that_no_rule_touches_come_from_the_config_or_the_optimizer(explained):
    page = explained("body.weight", "optimizer.paramwise_cfg.custom_keys={}")
    assert f"\n  lr            0.1{'cfg.yaml:6':>61}\n" in page
    assert f"\n  weight_decay  0.01{'cfg.yaml:7':>60}\n" in page
    assert rules(page) == [["none", "is", "for", "such", "a", "parameter"]]
    Path("cfg.yaml").write_text("\n".join(CONFIG.splitlines()[:6]).replace("lr: 0.1", "momentum: 0.9"))
    assert "\n  lr            0.001 (SGD's default)\n" in explained("body.weight")


def test_both_rules_that_decide_are_told_with_their_arithmetic_and_place(explained):
    page = explained("body.bias")
    assert "\n  lr            0.1 × 2 (bias_lr_mult) = 0.2\n" in page
    assert "\n  weight_decay  0.01 × 0.5 (bias_decay_mult) = 0.005\n" in page
    assert rules(page) == [
        ["decides", "bias_lr_mult:", "2", "cfg.yaml:12"],
        ["decides", "bias_decay_mult:", "0.5", "cfg.yaml:11"],
        ["not", "given", "flat_decay_mult"],
    ]


def test_a_rule_that_is_asked_later_loses(explained):
    assert rules(explained("norm.bias"))[:3] == [
        ["decides", "norm_decay_mult:", "0", "cfg.yaml:10"],
        ["loses", "bias_decay_mult:", "0.5", "cfg.yaml:11"],
        ["norm_decay_mult", "is", "asked", "first"],
    ]


def test_a_longer_key_wins_then_the_alphabet_and_sets_aside_all_other_rules(explained):
    assert [line for line in rules(explained("head.0.bias")) if line[0] in ("decides", "loses", "set")] == [
        ["decides", "custom_keys.ad.0.b", "cfg.yaml:17"],
        ["loses", "custom_keys.head.0", "cfg.yaml:15"],
        ["loses", "custom_keys.ead.0", "cfg.yaml:16"],
        ["loses", "custom_keys.head", "cfg.yaml:14"],
        ["set", "aside", "bias_lr_mult:", "2", "cfg.yaml:12"],
        ["set", "aside", "bias_decay_mult:", "0.5", "cfg.yaml:11"],
    ]
    page = " ".join(explained("head.0.bias").split())
    assert "{}; custom_keys.ad.0.b matches too, and is longer" in page
    assert "{decay_mult: 3}; custom_keys.ad.0.b matches too, and comes first in the alphabet" in page


def test_a_custom_key_that_combines_leaves_the_others_their_say(explained):
    page = explained("head.1.bias", "optimizer.paramwise_cfg.custom_keys_mode=combine")
    assert [line[:2] for line in rules(page) if line[0] in ("decides", "loses")] == [
        ["decides", "custom_keys.head"],
        ["decides", "norm_decay_mult:"],
        ["loses", "bias_decay_mult:"],
    ]
    assert "\n  momentum      0.9 (custom_keys)\n" in page


def test_an_option_that_a_combining_key_sets_itself_sets_the_multiplier_aside(explained):
    page = explained(
        "tied.bias", "optimizer.paramwise_cfg.custom_keys_mode=combine", f"{KEYS}.tied={{lr: 0.3}}"
    )
    assert "\n  lr            0.3 (custom_keys)\n" in page
    assert "  set aside  bias_lr_mult: 2" in page
    assert "custom_keys.tied sets lr itself" in page


def test_a_shared_parameter_is_found_by_any_name_and_told_with_what_each_would_get(explained):
    page = explained("tied.weight")
    assert page == explained("embedding.weight")
    assert page.startswith("embedding.weight = tied.weight\n  module  Embedding embedding\n")
    assert page.endswith("""
names, of which the first decides
  embedding.weight, of Embedding
      default: lr 0.1, weight_decay 0.01
  tied.weight, of Linear
      tied: lr 0.4, weight_decay 0.01
""")


def test_a_frozen_parameter_is_in_no_group(explained):
    assert explained("frozen.bias").splitlines()[3:] == [
        "  group   none: it is frozen (requires_grad is false)"
    ]


def test_a_scalar_of_the_root_has_no_path_and_no_shape(explained):
    assert explained("scale").splitlines()[:3] == ["scale", "  module  Net", "  shape   one number"]


def test_a_group_is_told_with_what_decides_and_its_parameters_drawn_together(explained):
    assert explained("norm").splitlines() == [
        "group norm",
        "  2 tensors, 8 parameters",
        "",
        "values",
        f"  lr            0.1{'cfg.yaml:6':>61}",
        "  weight_decay  0.01 × 0 (norm_decay_mult) = 0",
        "",
        "rules",
        f"  decides    norm_decay_mult: 0{'cfg.yaml:10':>49}",
        "",
        "parameters",
        "  norm.weight",
        "  norm.bias",
    ]


def test_a_name_of_both_a_parameter_and_a_group_is_told_as_both(explained):
    page = explained("scale", f"{KEYS}={{.scale: {{lr_mult: 2}}}}")
    assert page.startswith("scale\n")
    assert "\n\ngroup scale\n  1 tensor, 1 parameters\n" in page


def test_an_override_is_named_as_the_place(explained):
    page = explained("norm.weight", "optimizer.paramwise_cfg.norm_decay_mult=0.25")
    assert "0.01 × 0.25 (norm_decay_mult) = 0.0025" in page
    assert "  decides    norm_decay_mult: 0.25\n             override optimizer." in page


class ByShape(Constructor):
    """Decides in a way of its own."""

    def decide(self, entry, place):
        lr = {"lr": 0.5} if len(entry.shape) > 1 else {}
        return Verdict("matrix", ("matrix",), lr, {"lr": "half"}) if lr else Verdict("default")


def test_of_another_constructor_the_rules_that_decide_are_known(explained):
    page = explained("body.weight", "optimizer.constructor=tests.test_cli_explain:ByShape")
    assert "\n  lr            half\n" in page
    assert rules(page)[0][:2] == ["decides", "matrix"]


def test_the_layer_is_told_beside_the_rules(explained):
    page = explained(
        "blocks.0.mlp.up.bias",
        "model={type: ByteGPT, width: 8, depth: 2, heads: 2}",
        "optimizer.constructor=LearningRateDecayOptimWrapperConstructor",
        "optimizer.paramwise_cfg={bias_lr_mult: 2, bypass_duplicate: true, layer_decay_rate: 0.5}",
    )
    assert "layer_decay_rate" in page.split("\nrules\n")[0]
    assert [line[1] for line in rules(page) if line[0] == "decides"] == ["bias_lr_mult:", "layer1"]


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("body.weigth", "body.weight, tied.weight, norm.weight"),
        ("head", "head.0.weight, head.0.bias, head.1.weight and 1 more"),
        ("module.norm.bias", "norm.bias"),
        ("?", None),
    ],
)
def test_an_unknown_name_is_an_error_with_the_nearest(explained, capsys, name, suggestion):
    custom_keys = f"{KEYS}={{}}"
    assert main(["explain", "cfg.yaml", name, custom_keys]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("cfg.yaml: no parameter and no group has this name\n  given:    ")
    assert (f"did you mean: {suggestion}?" in err) == (suggestion is not None)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed=x", "override seed=x: seed: wrong type"),
        (f"{KEYS}={{haed: {{}}}}", f"override {KEYS}={{haed: {{}}}}: {KEYS}.haed: matches no parameter"),
    ],
)
def test_what_training_would_refuse_is_refused(explained, capsys, override, said):
    assert main(["explain", "cfg.yaml", "norm", override]) == 2
    assert capsys.readouterr().err.startswith(said)


def test_a_name_is_required(explained, capsys):
    with pytest.raises(SystemExit):
        main(["explain", "cfg.yaml"])
    assert capsys.readouterr().err.endswith("the following arguments are required: NAME\n")


@pytest.mark.parametrize("mode", ["override", "combine"])
def test_the_rules_that_are_said_to_decide_give_the_values(explained, mode):
    config = load_config("cfg.yaml", [f"optimizer.paramwise_cfg.custom_keys_mode={mode}"])
    decisions = decide(model_without_memory(config), config.optimizer)
    for entry, verdict in decisions.verdicts:
        expected = {"lr": 0.1, "weight_decay": 0.01}
        for rule in contenders(decisions, entry, entry.places[0]):
            if rule.outcome == "decides":
                factors = rule.value if isinstance(rule.value, dict) else {rule.rule: rule.value}
                for name, value in factors.items():
                    if name.endswith("_mult"):
                        expected["lr" if name.endswith("lr_mult") else "weight_decay"] *= value
        given = {option: verdict.options.get(option, decisions.defaults[option]) for option in expected}
        assert given == pytest.approx(expected), entry.fqn
