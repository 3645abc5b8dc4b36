"""What the optimizer section of a config has to say without torch."""

import pytest

from distopt.config import OptimizerConfig, validate
from distopt.errors import ConfigError


def paramwise_error(paramwise_cfg, **optimizer):
    section = {"type": "SGD", "paramwise_cfg": paramwise_cfg, **optimizer}
    with pytest.raises(ConfigError) as caught:
        validate(OptimizerConfig, section, key="optimizer")
    return caught.value


@pytest.mark.parametrize("multiplier", ["norm", "bias", "dwconv", "flat"])
def test_a_decay_multiplier_needs_weight_decay(multiplier):
    error = paramwise_error({f"{multiplier}_decay_mult": 0.0}, lr=1)
    assert error.key == f"optimizer.paramwise_cfg.{multiplier}_decay_mult"
    assert "multiplies weight_decay, which the optimizer section does not give" in error.problem


@pytest.mark.parametrize("multiplier", ["bias_lr_mult", "dcn_offset_lr_mult"])
def test_an_lr_multiplier_needs_lr(multiplier):
    error = paramwise_error({multiplier: 2.0}, weight_decay=1)
    assert error.key == f"optimizer.paramwise_cfg.{multiplier}"
    assert "multiplies lr" in error.problem


def test_multipliers_of_a_custom_key_need_what_they_multiply():
    error = paramwise_error({"custom_keys": {"a.b": {"lr_mult": 1, "decay_mult": 1}}})
    keys = [one.key for one in (error, *error.others)]
    entry = "optimizer.paramwise_cfg.custom_keys.a.b"
    assert keys == [f"{entry}.lr_mult", f"{entry}.decay_mult"]


@pytest.mark.parametrize(
    ("paramwise_cfg", "key", "allowed"),
    [
        ([], "", "a mapping"),
        ({"bias_lr_mult": -1}, "bias_lr_mult", "0 or more"),
        ({"bias_lr_mult": "2"}, "bias_lr_mult", "a number"),
        ({"bias_lr_mult": True}, "bias_lr_mult", "a number"),
        ({"bias_lr_mult": float("inf")}, "bias_lr_mult", "a finite number"),
        ({"norm_types": "all"}, "norm_types", "auto or mmengine or a list"),
        ({"norm_types": 3}, "norm_types", "auto or mmengine or a list"),
        ({"norm_types": ["a", 3]}, "norm_types.1", "text"),
        ({"custom_keys": None}, "custom_keys", "a mapping"),
        ({"custom_keys": ["head"]}, "custom_keys", "a mapping"),
        ({"custom_keys": {"head": 0.1}}, "custom_keys.head", "a mapping"),
        ({"custom_keys": {"head": None}}, "custom_keys.head", "a mapping"),
        ({"custom_keys": {"head": {"lr_mult": -1}}}, "custom_keys.head.lr_mult", "a finite number ≥ 0"),
        (
            {"custom_keys": {"head": {"decay_mult": "0"}}},
            "custom_keys.head.decay_mult",
            "a finite number ≥ 0",
        ),
        ({"custom_keys": {"head": {"lr": True}}}, "custom_keys.head.lr", "a finite number ≥ 0"),
        ({"custom_keys": {"head": {"betas": None}}}, "custom_keys.head.betas", "a value, or no such key"),
        ({"custom_keys": {"head": {"name": ""}}}, "custom_keys.head.name", "text that is not empty"),
    ],
)
def test_a_wrong_value_of_paramwise_cfg_is_shown_with_what_is_allowed(paramwise_cfg, key, allowed):
    error = paramwise_error(paramwise_cfg, lr=1, weight_decay=1)
    assert error.key == ".".join(filter(None, ("optimizer.paramwise_cfg", key)))
    assert error.allowed == allowed
    assert error.others == ()


def test_an_unknown_key_of_paramwise_cfg_is_an_error_with_the_nearest():
    error = paramwise_error({"norm_decay_mul": 0}, lr=1, weight_decay=1)
    assert (error.key, error.problem) == ("optimizer.paramwise_cfg.norm_decay_mul", "unknown key")
    assert error.suggestion == "norm_decay_mult"


def test_a_constructor_of_the_users_has_keys_of_its_own():
    section = {
        "type": "SGD",
        "constructor": "mypkg:Mine",
        "paramwise_cfg": {"bypass_duplicate": True, "mine": 1},
    }
    paramwise = validate(OptimizerConfig, section).paramwise
    assert (paramwise.bypass_duplicate, paramwise.own) == (True, {"mine": 1})


def test_a_layer_decay_rate_needs_its_constructor():
    error = paramwise_error({"layer_decay_rate": 0.75}, lr=1)
    assert error.key == "optimizer.paramwise_cfg.layer_decay_rate"
    assert error.problem == "needs constructor: LearningRateDecayOptimWrapperConstructor"


def test_a_layer_decay_rate_needs_lr():
    error = paramwise_error(
        {"layer_decay_rate": 0.75}, constructor="LearningRateDecayOptimWrapperConstructor"
    )
    assert error.key == "optimizer.paramwise_cfg.layer_decay_rate"
    assert "multiplies lr" in error.problem


def test_an_empty_custom_key_is_an_error():
    error = paramwise_error({"custom_keys": {"": {}}})
    assert error.key.startswith("optimizer.paramwise_cfg.custom_keys")
    assert error.allowed == "text that is not empty"


def test_a_section_that_is_no_mapping_is_an_error():
    with pytest.raises(ConfigError) as caught:
        validate(OptimizerConfig, "AdamW", key="optimizer")
    assert caught.value.key == "optimizer"
    assert caught.value.allowed == "a mapping: {type: AdamW, …}"
