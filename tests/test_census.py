"""The census of odd models: what the rules see, and what cannot be counted."""

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations, prune

from distopt import ConfigError, build_optimizer, make_plan

CFG = {
    "type": "AdamW",
    "lr": 1e-3,
    "weight_decay": 0.1,
    "paramwise_cfg": {
        "bias_decay_mult": 0,
        "norm_decay_mult": 0,
        "dwconv_decay_mult": 0,
        "flat_decay_mult": 0,
    },
}


def with_nothing() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2, affine=False))
    model.register_module("no_child", None)
    model.register_parameter("no_parameter", None)
    return model


def parametrized() -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(nn.Conv2d(2, 2, 1, groups=2)))


def pruned() -> nn.Module:
    return prune.l1_unstructured(nn.Linear(2, 2), "weight", 1)


def lists_and_dicts() -> nn.Module:
    flat, scalar, matrix = (nn.Parameter(torch.ones(shape)) for shape in ((2,), (), (2, 2)))
    return nn.ModuleDict(
        {"list": nn.ParameterList([flat, matrix]), "dict": nn.ParameterDict({"scalar": scalar})}
    )


def attention() -> nn.Module:
    return nn.MultiheadAttention(4, 2)


class Tagged(torch.Tensor):
    pass


def odd_tensors() -> nn.Module:
    model = nn.Module()
    model.complex = nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))
    model.empty = nn.Parameter(torch.ones(0))
    model.integers = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    model.tagged = nn.Parameter(torch.ones(2, 2).as_subclass(Tagged))
    return model


ODD = {
    with_nothing: {"default": ["0.weight"]},
    parametrized: {
        "bias": ["0.bias"],
        "default": ["0.parametrizations.weight.original0", "0.parametrizations.weight.original1"],
    },
    pruned: {"bias": ["bias"], "default": ["weight_orig"]},
    lists_and_dicts: {"flat": ["list.0"], "default": ["list.1", "dict.scalar"]},
    attention: {
        "default": ["in_proj_weight", "out_proj.weight"],
        "flat": ["in_proj_bias"],
        "bias": ["out_proj.bias"],
    },
    odd_tensors: {"default": ["complex", "tagged"], "flat": ["empty"]},
}
every_odd_model = pytest.mark.parametrize("make", ODD, ids=lambda make: make.__name__)


@every_odd_model
def test_odd_models_have_groups(make):
    optimizer = build_optimizer(make(), CFG)
    assert {group["name"]: group["param_names"] for group in optimizer.param_groups} == ODD[make]


@every_odd_model
def test_odd_models_have_the_same_plan_when_wrapped(make):
    assert make_plan(checkpoint_wrapper(make()), CFG) == make_plan(make(), CFG)


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(2), nn.LazyBatchNorm1d())


def test_a_lazy_model_has_no_plan_before_its_first_batch():
    with pytest.raises(ConfigError, match=r"no shapes yet: 0\.weight, 0\.bias, 1\.weight, 1\.bias") as error:
        make_plan(lazy(), CFG)
    assert "model(batch)" in error.value.allowed


def test_a_lazy_model_is_an_ordinary_one_after_its_first_batch():
    model, ordinary = lazy(), nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    model(torch.ones(4, 3))
    assert make_plan(model, CFG) == make_plan(ordinary, CFG)


def test_freezing_what_the_plan_trains_is_an_error():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    plan = make_plan(model, CFG)
    model[1].requires_grad_(False)
    with pytest.raises(ConfigError, match=r"frozen since: 1\.weight, 1\.bias"):
        build_optimizer(model, CFG, plan)


def test_a_frozen_parameter_on_meta_is_an_error_too():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta").requires_grad_(False))
    with pytest.raises(ConfigError, match=r"on the meta device: 1\.weight, 1\.bias"):
        build_optimizer(model, CFG)
