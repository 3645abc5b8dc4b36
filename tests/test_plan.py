"""Plans: named, merged, the same before and after wrapping; binding proves ownership."""

import pytest
import torch
from torch import nn

from distopt import ConfigError, build_optimizer, make_plan
from distopt.config import OptimizerConfig, validate
from distopt.models import ByteGPT
from distopt.optim import try_optimizer

CFG = {
    "type": "AdamW",
    "lr": 1e-3,
    "weight_decay": 0.1,
    "paramwise_cfg": {
        "norm_decay_mult": 0,
        "bias_decay_mult": 0,
        "bypass_duplicate": True,
        "custom_keys": {"embedding": {"lr_mult": 0.5}},
    },
}


def tiny() -> ByteGPT:
    return ByteGPT(context=8, width=16, depth=2, heads=2)


def names_of(plan) -> list[str]:
    return [group.name for group in plan.groups]


def test_groups_are_named_and_ordered_by_the_walk():
    assert names_of(make_plan(tiny(), CFG)) == ["embedding", "default", "norm", "bias"]


def test_adding_a_rule_renames_no_other_group():
    more = {**CFG, "paramwise_cfg": {**CFG["paramwise_cfg"], "flat_decay_mult": 0, "dwconv_decay_mult": 0}}
    assert names_of(make_plan(tiny(), more)) == names_of(make_plan(tiny(), CFG))


def test_same_decay_by_different_rules_stays_two_groups():
    plan = make_plan(tiny(), CFG)
    decays = {group.name: group.options["weight_decay"] for group in plan.groups}
    assert decays["norm"] == decays["bias"] == 0


@pytest.mark.parametrize(
    ("key", "name"),
    [("blocks.0", "blocks.0"), ("blocks.0.", "blocks.0"), ("re:blocks.1", "re_blocks.1"), ("all", "all.2")],
)
def test_names_are_fit_for_tags(key, name):
    model = nn.ModuleDict(
        {"all": nn.Linear(1, 1), "blocks": nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])}
    )
    plan = make_plan(model, {**CFG, "paramwise_cfg": {"custom_keys": {key: {"lr_mult": 2}}}})
    assert name in names_of(plan)


def test_names_that_clash_are_numbered():
    model = nn.ModuleDict({"a": nn.Linear(1, 1), "b": nn.Linear(1, 1)})
    keys = {"a.": {"lr_mult": 2, "name": "x"}, "b.": {"lr_mult": 3, "name": "x"}}
    assert names_of(make_plan(model, {**CFG, "paramwise_cfg": {"custom_keys": keys}})) == ["x", "x.2"]


def test_a_plan_of_the_meta_model_is_the_plan():
    with torch.device("meta"):
        meta = tiny()
    assert make_plan(meta, CFG) == make_plan(tiny(), CFG)


def test_the_digest_follows_values_and_membership():
    digests = {
        make_plan(tiny(), CFG).digest,
        make_plan(tiny(), {**CFG, "lr": 2e-3}).digest,
        make_plan(ByteGPT(context=8, width=16, depth=1, heads=2), CFG).digest,
    }
    assert len(digests) == 3


def test_groups_of_the_optimizer_have_names_and_fqns():
    optimizer = build_optimizer(tiny(), CFG)
    assert [group["name"] for group in optimizer.param_groups] == ["embedding", "default", "norm", "bias"]
    assert optimizer.param_groups[0]["param_names"] == ["embedding.weight"]
    assert optimizer.param_groups[0]["lr"] == 5e-4


def test_merged_groups_step_as_one_group_per_tensor_does():
    torch.manual_seed(0)
    merged, single = tiny(), tiny()
    single.load_state_dict(merged.state_dict())
    plan = make_plan(single, CFG)
    per_tensor = torch.optim.AdamW(
        [
            {"params": [single.get_parameter(fqn)], **group.options}
            for group in plan.groups
            for fqn in group.param_names
        ],
        lr=CFG["lr"],
        fused=True,
    )
    tokens = torch.randint(256, (4, 9))
    for model, optimizer in ((merged, build_optimizer(merged, CFG)), (single, per_tensor)):
        for _ in range(3):
            model(tokens)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
    for ours, theirs in zip(merged.parameters(), single.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_shared_parameters_need_bypass_duplicate():
    cfg = {**CFG, "paramwise_cfg": {"norm_decay_mult": 0}}
    with pytest.raises(ConfigError, match=r"embedding\.weight → .*head\.weight → ") as error:
        make_plan(tiny(), cfg)
    assert "bypass_duplicate: true" in str(error.value)


def test_without_paramwise_cfg_shared_parameters_are_owned_once_silently():
    plan = make_plan(tiny(), {"type": "SGD", "lr": 0.1})
    assert sum(fqn == "embedding.weight" for group in plan.groups for fqn in group.param_names) == 1


def test_a_tie_whose_names_the_rules_treat_differently_is_said_with_both_verdicts():
    (note,) = (warning for warning in make_plan(tiny(), CFG).warnings if "shared" in warning)
    assert "owned once, as embedding.weight" in note
    assert "embedding.weight → embedding (lr 0.0005)" in note
    assert "head.weight → default" in note


def test_the_values_in_what_is_said_of_a_tie_are_rounded():
    keys = {"head": {"lr_mult": 0.1}}
    cfg = {**CFG, "lr": 3e-4, "paramwise_cfg": {"bypass_duplicate": True, "custom_keys": keys}}
    assert 3e-4 * 0.1 != 3e-5
    assert any("head.weight → head (lr 3e-05)" in warning for warning in make_plan(tiny(), cfg).warnings)


def test_a_tie_broken_after_the_plan_is_an_error():
    model = tiny()
    plan = make_plan(model, CFG)
    model.head.weight = nn.Parameter(model.head.weight.detach().clone())
    with pytest.raises(ConfigError, match=r"tie was broken.*head\.weight") as error:
        build_optimizer(model, CFG, plan)
    assert error.value.key == "model"


def test_a_parameter_that_came_after_the_plan_is_an_error():
    model = tiny()
    plan = make_plan(model, CFG)
    model.extra = nn.Parameter(torch.zeros(2))
    with pytest.raises(ConfigError, match=r"trainable parameters that the plan does not have: extra"):
        build_optimizer(model, CFG, plan)


def test_rules_keep_their_names_when_a_custom_key_wants_one():
    model = nn.ModuleDict({"norm": nn.Linear(1, 1), "after": nn.LayerNorm(1)})
    keys = {"norm.": {"lr_mult": 2, "name": "norm"}}
    plan = make_plan(model, {**CFG, "paramwise_cfg": {"norm_decay_mult": 0, "custom_keys": keys}})
    assert {group.name: group.param_names[0] for group in plan.groups} == {
        "norm.2": "norm.weight",
        "norm": "after.weight",
    }


def test_a_rule_for_norms_does_not_rename_the_biases():
    model = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1))
    rules = {"bias_lr_mult": 2, "bias_decay_mult": 0}
    plan = make_plan(model, {**CFG, "paramwise_cfg": rules})
    assert {group.name: group.param_names for group in plan.groups if "bias" in group.name} == {
        "bias": ["1.bias"],
        "bias_decay": ["0.bias"],
    }
    more = make_plan(model, {**CFG, "paramwise_cfg": {**rules, "norm_decay_mult": 0}})
    assert [group.param_names for group in more.groups if group.name == "bias"] == [["1.bias"]]


def test_the_biases_of_norms_keep_their_name_when_a_key_takes_all_others():
    model = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1))
    rules = {"bias_lr_mult": 2, "bias_decay_mult": 0, "custom_keys": {"1.": {"lr_mult": 3}}}
    plan = make_plan(model, {**CFG, "paramwise_cfg": rules})
    assert {group.name: group.param_names for group in plan.groups}["bias_decay"] == ["0.bias"]


@pytest.mark.parametrize(("option", "value"), [("betas", [0.9]), ("betas", [5.0, 7.0]), ("eps", -1.0)])
@pytest.mark.parametrize("of_group", [False, True])
def test_options_that_the_optimizer_refuses_are_found_on_a_trial(option, value, of_group):
    cfg = {"type": "AdamW", "lr": 1e-3, "paramwise_cfg": {"bypass_duplicate": True}}
    if of_group:
        cfg["paramwise_cfg"]["custom_keys"] = {"mlp": {option: value}}
    else:
        cfg[option] = value
    with pytest.raises(ConfigError, match="AdamW refuses its arguments" + " for group mlp" * of_group):
        try_optimizer(make_plan(tiny(), cfg), validate(OptimizerConfig, cfg))


def test_a_broken_tie_with_a_frozen_copy_is_an_error():
    model = tiny()
    plan = make_plan(model, CFG)
    model.head.weight = nn.Parameter(model.head.weight.detach().clone(), requires_grad=False)
    with pytest.raises(ConfigError, match=r"tie was broken.*head\.weight"):
        build_optimizer(model, CFG, plan)


def test_parameters_on_the_meta_device_are_refused():
    with torch.device("meta"):
        model = tiny()
    with pytest.raises(ConfigError, match="meta device"):
        build_optimizer(model, CFG)


def test_a_plan_of_another_model_is_refused():
    plan = make_plan(tiny(), CFG)
    with pytest.raises(ConfigError, match=r"gone: blocks\.1\."):
        build_optimizer(ByteGPT(context=8, width=16, depth=1, heads=2), CFG, plan)


def test_two_parameters_that_were_tied_after_the_plan_are_an_error():
    model = ByteGPT(context=8, width=16, depth=2, heads=2, tie=False)
    plan = make_plan(model, CFG)
    model.head.weight = model.embedding.weight
    with pytest.raises(ConfigError, match=r"are one now: embedding\.weight and head\.weight") as error:
        build_optimizer(model, CFG, plan)
    assert error.value.allowed == "a plan made after tying them"


def test_a_plan_of_other_shapes_is_refused():
    plan = make_plan(tiny(), CFG)
    with pytest.raises(ConfigError, match=r"other shapes than in the plan: embedding\.weight \[256, 32\]"):
        build_optimizer(ByteGPT(context=8, width=32, depth=2, heads=2), CFG, plan)


def test_a_plan_for_another_optimizer_is_refused():
    plan = make_plan(tiny(), CFG)
    with pytest.raises(ConfigError, match=r"optimizer\.type: the plan was made for AdamW"):
        build_optimizer(tiny(), {**CFG, "type": "SGD"}, plan)
