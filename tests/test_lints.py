"""Lints: what is probably not meant, said before training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distopt import ConfigError, make_plan
from distopt.optim.near import near

CFG = {"type": "AdamW", "lr": 1e-3, "weight_decay": 0.1}
NO_DECAY = {"norm_decay_mult": 0, "bias_decay_mult": 0}


class ScaleNorm(nn.Module):
    """Has `norm` in its name, but neither a base nor an ending that the rules know."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(8, 4)
        self.block = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        self.head = nn.Linear(4, 8)


def warnings(paramwise: dict | None = None, model: nn.Module | None = None, **optimizer) -> list[str]:
    cfg = {**CFG, **optimizer, "paramwise_cfg": {**NO_DECAY, **(paramwise or {})}}
    return list(make_plan(model or Net(), cfg).warnings)


def keys(**custom_keys) -> dict:
    return {"custom_keys": {key.replace("_", "."): entry for key, entry in custom_keys.items()}}


def test_a_plan_without_anything_odd_has_no_warnings():
    assert warnings() == []


def test_a_key_that_matches_nothing_is_an_error_unless_it_is_to_be_a_warning():
    with pytest.raises(ConfigError, match=r"custom_keys\.haed: matches no parameter") as error:
        warnings(keys(haed={"lr_mult": 2}))
    assert error.value.suggestion == "head"
    (warning,) = warnings(keys(haed={"lr_mult": 2}), unmatched_keys="warn")
    assert "custom_keys.haed: matches no parameter" in warning
    assert "unmatched_keys" not in warning


@pytest.mark.parametrize(
    "key",
    [
        "module.head",
        "_orig_mod.head",
        "module._orig_mod.head",
        "_fsdp_wrapped_module.head",
        "block._checkpoint_wrapped_module.0",
        "glob:module.head.*",
        r"re:^module\.head",
        r"re:^(module\.)?_orig_mod\.head",
    ],
)
def test_a_key_with_a_wrappers_prefix_is_told_what_it_means(key):
    with pytest.raises(ConfigError, match="names are those of the model before it is wrapped") as error:
        warnings({"custom_keys": {key: {"lr_mult": 2}}})
    meant = {
        "block._checkpoint_wrapped_module.0": "block.0",
        "glob:module.head.*": "glob:head.*",
        r"re:^module\.head": "re:^head",
        r"re:^(module\.)?_orig_mod\.head": "re:^()?head",
    }
    assert error.value.suggestion == meant.get(key, "head")


@pytest.mark.parametrize(
    ("key", "suggestion"), [("blokc.1", "block.1"), ("Head.weihgt", "head.weight"), ("block.7", "block.0")]
)
def test_the_nearest_name_keeps_the_indices_where_there_is_one(key, suggestion):
    with pytest.raises(ConfigError) as error:
        warnings({"custom_keys": {key: {"lr_mult": 2}}})
    assert error.value.suggestion == suggestion


def test_among_too_many_different_names_none_is_sought():
    assert near("layers.7.atn", (f"layers.{i}.attn" for i in range(10_000))) == ["layers.7.attn"]
    assert near("name7x", (f"name{i}" for i in range(10_000))) == []


def test_a_key_that_a_longer_one_leaves_nothing_is_a_warning():
    (warning,) = warnings(keys(head={"lr_mult": 2, "decay_mult": 0}, hea={"lr_mult": 3}))
    assert warning.endswith("custom_keys.hea: decides nothing, since all that it matches is head's")


def test_all_the_longer_keys_that_leave_one_nothing_are_named():
    (warning,) = warnings(
        keys(block={"lr_mult": 3}, block_1={"lr_mult": 2, "decay_mult": 0}, block_0={"decay_mult": 0})
    )
    assert warning.endswith(
        "custom_keys.block: decides nothing, since all that it matches is block.0's, block.1's"
    )


def test_a_key_that_a_longer_one_leaves_something_is_none():
    assert warnings(keys(block={"decay_mult": 0}, block_1={"decay_mult": 0})) == []


def test_decay_on_norms_and_biases_is_a_warning_for_each():
    norms, biases = make_plan(Net(), CFG).warnings
    assert norms.startswith("weight decay on norms: block.1.weight, block.1.bias; ")
    assert biases.startswith("weight decay on biases: block.0.bias, head.bias; ")


def test_decay_that_a_rule_asks_for_is_none():
    assert warnings({"norm_decay_mult": 1, "bias_decay_mult": 0.5}) == []


def test_without_decay_there_is_nothing_to_say():
    assert make_plan(Net(), {**CFG, "weight_decay": 0}).warnings == ()


def test_a_key_that_brings_decay_back_to_norms_is_a_warning():
    (warning,) = warnings(keys(block_1={"lr_mult": 2}))
    assert "since their custom key sets aside norm_decay_mult: block.1.weight" in warning
    assert warnings({**keys(block_1={"lr_mult": 2}), "custom_keys_mode": "combine"}) == []


def test_decay_on_a_marked_parameter_is_a_warning():
    model = Net()
    model.embedding.weight._no_weight_decay = True
    (warning,) = warnings(model=model)
    assert warning == ("weight decay on what the model's author marked _no_weight_decay: embedding.weight")
    assert warnings(keys(embedding={"decay_mult": 0}), model=model) == []
    model.embedding.weight._no_weight_decay = False
    assert warnings(model=model) == []


def test_a_norm_that_no_rule_sees_is_a_warning_with_what_makes_it_one():
    model = Net()
    model.block.append(ScaleNorm())
    (warning,) = warnings(model=model)
    assert warning.startswith("ScaleNorm is no norm for the rules: block.2.weight; norm_types: [")
    assert warnings({"norm_types": ["tests.test_lints:ScaleNorm"]}, model=model) == []


@pytest.mark.parametrize("entry", [{"lr_mult": 0, "decay_mult": 0}, {"lr": 0.0, "decay_mult": 0}])
def test_a_learning_rate_of_zero_is_a_warning(entry):
    (warning,) = warnings(keys(head={**entry, "decay_mult": 0}))
    assert warning.startswith("lr is 0 for head.weight, head.bias: ")


def test_a_matrix_optimizer_on_embedding_and_head_is_a_warning():
    model = Net().requires_grad_(False)
    for module in (model.embedding, model.block[0], model.head):
        module.weight.requires_grad_(True)
    (warning,) = make_plan(model, {"type": "Muon", "lr": 0.02, "weight_decay": 0.1}).warnings
    assert warning.endswith("not for embedding and head: embedding.weight, head.weight")


def muon_warnings(model: nn.Module) -> tuple[str, ...]:
    for parameter in model.parameters():
        if parameter.ndim != 2:
            parameter.requires_grad_(False)
    return make_plan(model, {"type": "Muon", "lr": 0.02, "weight_decay": 0.1}).warnings


def test_a_frozen_head_is_no_reason_to_warn_of_a_hidden_matrix():
    model = Net()
    model.embedding.requires_grad_(False)
    model.head.requires_grad_(False)
    assert muon_warnings(model) == ()


def test_a_tied_head_is_named_once_and_no_hidden_matrix_with_it():
    model = Net()
    model.head.weight = model.embedding.weight
    (warning,) = muon_warnings(model)
    assert warning.endswith("not for embedding and head: embedding.weight")


def test_a_norm_like_module_without_decay_is_none():
    model = Net()
    model.block.append(ScaleNorm())
    assert warnings({"flat_decay_mult": 0}, model=model) == []


def test_norms_of_several_dimensions_decay_with_a_warning():
    norms, biases = make_plan(nn.Sequential(nn.LayerNorm((2, 2)), nn.Linear(2, 2)), CFG).warnings
    assert norms.startswith("weight decay on norms: 0.weight, 0.bias; ")
    assert biases.startswith("weight decay on biases: 1.bias; ")


@pytest.mark.parametrize(
    ("module", "bias"), [(nn.MultiheadAttention(4, 2), "in_proj_bias"), (nn.LSTM(2, 2), "bias_ih_l0")]
)
def test_biases_of_another_name_decay_with_a_warning_that_says_what_reaches_them(module, bias):
    (warning,) = warnings(model=module)
    assert warning.startswith(f"weight decay on biases: {bias}")
    assert warning.endswith("; paramwise_cfg: {flat_decay_mult: 0} leaves it off")
    assert warnings({"flat_decay_mult": 0}, model=module) == []


def test_the_advice_against_decay_by_default_names_what_it_needs():
    (warning,) = make_plan(nn.Linear(2, 2), {"type": "AdamW", "lr": 1e-3}).warnings
    assert warning.endswith("paramwise_cfg: {bias_decay_mult: 0}, beside weight_decay: 0.01, leaves it off")


def test_a_tie_whose_names_are_treated_alike_is_none():
    model = Net()
    model.head.weight = model.embedding.weight
    assert warnings({"bypass_duplicate": True}, model=model) == []


def test_a_tie_whose_names_are_treated_differently_is_a_warning_with_both_verdicts():
    model = Net()
    model.head.weight = model.embedding.weight
    paramwise = {"bypass_duplicate": True, **keys(head={"lr_mult": 2, "decay_mult": 0})}
    (warning,) = warnings(paramwise, model=model)
    assert "owned once, as embedding.weight: embedding.weight → default; head.weight → head (lr" in warning


def test_a_tie_whose_names_have_equal_values_by_different_rules_is_none():
    model = Net()
    model.head.weight = model.embedding.weight
    paramwise = {"bypass_duplicate": True, **keys(head_weight={"weight_decay": 0.1})}
    assert warnings(paramwise, model=model) == []


def test_parameters_over_one_memory_are_a_warning():
    model = Net()
    model.head.weight = nn.Parameter(model.embedding.weight.data)
    (warning,) = warnings(model=model)
    assert warning.startswith("several parameters over one memory: embedding.weight, head.weight; ")
    model.requires_grad_(False).block[0].requires_grad_(True)
    assert warnings(model=model) == []


def test_parameters_side_by_side_in_one_memory_are_none():
    model = Net()
    memory = torch.zeros(2, 8, 4)
    model.embedding.weight, model.head.weight = (nn.Parameter(half) for half in memory)
    assert warnings(model=model) == []


def test_parameters_without_memory_share_none():
    with torch.device("meta"):
        assert warnings(model=Net()) == []
    model = Net()
    model.empty, model.none = nn.Parameter(torch.zeros(0, 2)), nn.Parameter(torch.zeros(0, 2))
    assert warnings(model=model) == []
