"""`paramwise_cfg`: which rule decides, with which value, under which name."""

import pytest
import torch
from torch import nn

from distopt import ConfigError, make_plan

BASE = {"type": "AdamW", "lr": 1e-3, "weight_decay": 0.1}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.scale = nn.Parameter(torch.ones(4))
        self.conv = nn.Conv2d(3, 4, 1)
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4)
        self.norm = nn.BatchNorm2d(4)
        self.rms = nn.RMSNorm(4)
        self.head = nn.Linear(4, 2)


def verdicts(paramwise: dict, model: nn.Module | None = None, **optimizer) -> dict[str, tuple]:
    """FQN → (group, lr, weight decay)."""
    plan = make_plan(model or Net(), {**BASE, **optimizer, "paramwise_cfg": paramwise})
    return {
        fqn: (group.name, pytest.approx(group.options["lr"]), pytest.approx(group.options["weight_decay"]))
        for group in plan.groups
        for fqn in group.param_names
    }


def test_without_rules_everything_is_one_group():
    plan = make_plan(Net(), BASE)
    assert [(group.name, dict(group.options)) for group in plan.groups] == [
        ("default", {"lr": 1e-3, "weight_decay": 0.1})
    ]


def test_norm_rule_covers_weight_and_bias_and_beats_the_bias_rule_for_decay():
    found = verdicts({"norm_decay_mult": 0, "bias_decay_mult": 0.5})
    assert found["norm.weight"] == found["norm.bias"] == ("norm", 1e-3, 0.0)
    assert found["conv.bias"] == ("bias", 1e-3, 0.05)


def test_bias_lr_leaves_the_bias_of_a_norm_alone():
    found = verdicts({"bias_lr_mult": 2})
    assert found["conv.bias"] == ("bias", 2e-3, 0.1)
    assert found["norm.bias"] == ("default", 1e-3, 0.1)


def test_dwconv_rule_covers_depthwise_convolutions_only():
    found = verdicts({"dwconv_decay_mult": 0})
    assert found["depthwise.weight"] == ("dwconv", 1e-3, 0.0)
    assert found["conv.weight"][0] == "default"


def test_flat_rule_covers_what_is_one_dimensional_and_nothing_else_claimed():
    found = verdicts({"flat_decay_mult": 0, "bias_decay_mult": 0.5})
    assert found["scale"] == ("flat", 1e-3, 0.0)
    assert found["conv.bias"][0] == "bias"
    assert found["cls_token"][0] == "default"


def test_rmsnorm_is_a_norm_by_default_and_none_for_mmengine():
    assert verdicts({"norm_decay_mult": 0})["rms.weight"][0] == "norm"
    assert verdicts({"norm_decay_mult": 0, "norm_types": "mmengine"})["rms.weight"][0] == "default"


def test_a_norm_of_ones_own_is_known_by_its_name():
    class LlamaRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

    model = nn.ModuleDict({"n": LlamaRMSNorm()})
    assert verdicts({"norm_decay_mult": 0}, model)["n.weight"][0] == "norm"


def test_norm_types_adds_classes_by_import_path():
    found = verdicts({"norm_decay_mult": 0, "norm_types": ["torch.nn.Linear"]})
    assert found["head.weight"][0] == "norm"
    assert found["norm.weight"][0] == "norm"


def test_a_custom_key_ignores_every_other_rule():
    found = verdicts({"bias_decay_mult": 0, "custom_keys": {"head": {"lr_mult": 10}}})
    assert found["head.bias"] == found["head.weight"] == ("head", 1e-2, 0.1)


def test_the_longest_key_wins_then_the_alphabet():
    keys = {
        "conv": {"lr_mult": 2},
        "conv.weight": {"lr_mult": 3},
        "rms": {"lr_mult": 4},
        "ms.": {"lr_mult": 5},
    }
    found = verdicts({"custom_keys": keys})
    assert found["conv.weight"][:2] == ("conv.weight", 3e-3)
    assert found["conv.bias"][:2] == ("conv", 2e-3)
    assert found["rms.weight"][:2] == ("ms", 5e-3)


def test_a_parameter_of_the_root_is_matched_behind_a_dot():
    assert verdicts({"custom_keys": {".cls_token": {"decay_mult": 0}}})["cls_token"] == (
        "cls_token",
        1e-3,
        0.0,
    )


def test_a_key_may_set_any_option_of_the_optimizer():
    plan = make_plan(
        Net(), {**BASE, "paramwise_cfg": {"custom_keys": {"head": {"betas": [0.9, 0.95], "lr": 5e-4}}}}
    )
    head = next(group for group in plan.groups if group.name == "head")
    assert head.options["betas"] == [0.9, 0.95]
    assert head.options["lr"] == 5e-4


def test_combine_multiplies_the_key_with_the_type_rules():
    found = verdicts(
        {
            "norm_decay_mult": 0,
            "bias_lr_mult": 2,
            "custom_keys_mode": "combine",
            "custom_keys": {"norm": {"lr_mult": 0.5}, "head": {"lr_mult": 10}},
        }
    )
    assert found["norm.weight"] == ("norm.norm", 5e-4, 0.0)
    assert found["head.bias"] == ("head.bias", 2e-2, 0.1)
    assert found["head.weight"] == ("head", 1e-2, 0.1)


def test_patterns_are_matched_on_the_fqn():
    found = verdicts(
        {"custom_keys": {"re:^(conv|head)\\.bias$": {"lr_mult": 2}, "glob:norm.*": {"lr_mult": 3}}}
    )
    assert found["conv.bias"][1] == found["head.bias"][1] == 2e-3
    assert found["norm.weight"][1] == 3e-3
    assert found["conv.weight"][0] == "default"


@pytest.mark.parametrize("key", ["re", "glob"])
def test_a_key_is_a_pattern_only_with_a_colon(key):
    model = nn.ModuleDict({"core": nn.Linear(1, 1), "global": nn.Linear(1, 1), "rest": nn.Linear(1, 1)})
    model["my_" + key] = nn.Linear(1, 1)
    found = verdicts({"custom_keys": {key: {"lr_mult": 2}}}, model)
    assert {fqn for fqn, (group, *_) in found.items() if group == key} == {fqn for fqn in found if key in fqn}
    assert f"my_{key}.weight" in {fqn for fqn in found if found[fqn][0] == key}


@pytest.mark.parametrize("key", ["re:", "glob:"])
def test_an_empty_pattern_is_an_error(key):
    with pytest.raises(ConfigError, match="an empty pattern") as error:
        verdicts({"custom_keys": {key: {"lr_mult": 2}}})
    assert error.value.key == f"optimizer.paramwise_cfg.custom_keys.{key}"


@pytest.mark.parametrize(
    ("entry", "group"), [({"lr": 0.5}, "head"), ({"weight_decay": 0.5}, "head.bias"), ({}, "head.bias")]
)
def test_a_rule_for_what_the_key_sets_itself_is_no_part_of_the_group(entry, group):
    rules = {"bias_lr_mult": 2, "custom_keys_mode": "combine", "custom_keys": {"head": entry}}
    expected = (group, entry.get("lr", 2e-3), entry.get("weight_decay", 0.1))
    assert verdicts(rules)["head.bias"] == expected


def test_the_arithmetic_is_kept_with_the_verdict():
    plan = make_plan(Net(), {**BASE, "lr": 6e-4, "paramwise_cfg": {"bias_lr_mult": 0.1}})
    bias = next(group for group in plan.groups if group.name == "bias")
    assert bias.why == {"lr": "0.0006 × 0.1 (bias_lr_mult) = 6e-05"}


def test_a_matched_key_without_lr_leaves_the_optimizers_default():
    plan = make_plan(Net(), {"type": "AdamW", "paramwise_cfg": {"custom_keys": {"head": {"eps": 1e-6}}}})
    head = next(group for group in plan.groups if group.name == "head")
    assert head.options["lr"] == 1e-3


class DeformConv2d(nn.Module):
    """In the place of torchvision's: it has no build here."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_offset = nn.Conv2d(2, 2, 1)
        self.weight = nn.Parameter(torch.zeros(2, 2))


def test_offsets_of_deformable_convolutions(monkeypatch):
    import sys
    from types import ModuleType

    ops = ModuleType("torchvision.ops")
    ops.DeformConv2d = DeformConv2d
    monkeypatch.setitem(sys.modules, "torchvision.ops", ops)
    found = verdicts(
        {"dcn_offset_lr_mult": 0.1, "bias_lr_mult": 2, "bias_decay_mult": 0, "flat_decay_mult": 0},
        nn.ModuleDict({"dcn": DeformConv2d()}),
    )
    assert found["dcn.conv_offset.bias"] == found["dcn.conv_offset.weight"] == ("dcn_offset", 1e-4, 0.1)
    assert found["dcn.weight"][0] == "default"


@pytest.mark.parametrize(
    ("paramwise", "key", "suggestion"),
    [
        ({"custom_keys": {"haed": {"lr_mult": 2}}}, "optimizer.paramwise_cfg.custom_keys.haed", "head"),
        (
            {"custom_keys": {"head": {"lr_mul": 2}}},
            "optimizer.paramwise_cfg.custom_keys.head.lr_mul",
            "lr_mult",
        ),
        ({"custom_keys": {"head": {"beta": 2}}}, "optimizer.paramwise_cfg.custom_keys.head.beta", "betas"),
    ],
)
def test_a_key_or_option_that_fits_nothing_is_an_error_with_the_nearest_name(paramwise, key, suggestion):
    with pytest.raises(ConfigError) as error:
        verdicts(paramwise)
    assert (error.value.key, error.value.suggestion) == (key, suggestion)


def test_unmatched_keys_can_be_a_warning():
    plan = make_plan(
        Net(), {**BASE, "unmatched_keys": "warn", "paramwise_cfg": {"custom_keys": {"haed": {}}}}
    )
    assert "haed: matches no parameter" in plan.warnings[0]


def test_a_key_that_matches_only_frozen_parameters_is_a_warning():
    model = Net()
    model.head.requires_grad_(False)
    plan = make_plan(model, {**BASE, "paramwise_cfg": {"custom_keys": {"head": {"lr_mult": 2}}}})
    assert "optimizer.paramwise_cfg.custom_keys.head: matches frozen parameters only" in plan.warnings
    assert plan.frozen == ("head.weight", "head.bias")


@pytest.mark.parametrize("model", [nn.Identity(), nn.Linear(2, 2).requires_grad_(False)])
def test_nothing_to_train_is_an_error(model):
    with pytest.raises(ConfigError, match=r"no trainable|frozen"):
        make_plan(model, BASE)


def test_an_unknown_argument_of_the_optimizer_is_an_error():
    with pytest.raises(ConfigError, match=r"optimizer\.momentun"):
        make_plan(Net(), {"type": "SGD", "lr": 0.1, "momentun": 0.9})
