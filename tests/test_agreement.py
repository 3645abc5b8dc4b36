"""Ranks that would train different groups are found before they train."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

from distopt import ConfigError, make_plan
from distopt.optim import Prebuilt, check_agreement
from tests.kit import run_distributed

CFG = {"type": "SGD", "lr": 0.1, "weight_decay": 0.01, "paramwise_cfg": {"norm_decay_mult": 0}}


def net(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(3, width), nn.LayerNorm(width), nn.Linear(width, 2))


def _outcome(odd: str | None) -> str:
    model, cfg = net(), CFG
    if odd == "frozen shape":
        model = nn.Sequential(*net(), nn.Linear(2, 4).requires_grad_(False))
    if dist.get_rank() == 2:
        if odd == "options":
            cfg = {**CFG, "paramwise_cfg": {"norm_decay_mult": 0.5}}
        elif odd == "shape":
            model = net(width=5)
        elif odd == "frozen":
            model[0].weight.requires_grad_(False)
        elif odd == "frozen shape":
            model = nn.Sequential(*net(), nn.Linear(2, 5).requires_grad_(False))
        elif odd == "missing":
            model[2].bias = None
        elif odd == "optimizer":
            cfg = {**CFG, "type": "AdamW"}
        elif odd == "own options":
            cfg = {**CFG, "momentum": 0.9}
        elif odd == "rules":
            cfg = {**CFG, "paramwise_cfg": {"norm_decay_mult": 0, "flat_decay_mult": 1}}
        elif odd == "order":
            model[0].register_parameter("weight", model[0]._parameters.pop("weight"))
    try:
        check_agreement(make_plan(model, cfg))
    except ConfigError as error:
        return error.problem
    return "agreed"


def _frozen_alike(frozen_group: bool) -> str:
    """Prebuilt optimizers, where rank 1's has more of what nobody trains, or that in another shape."""
    odd = dist.get_rank() == 1
    model = nn.ModuleDict(
        {"trained": nn.Linear(2, 2), "frozen": nn.Linear(3 if frozen_group else 3 + odd, 2)}
    )
    model["frozen"].requires_grad_(False)
    layers = model.values() if odd and frozen_group else [model["trained"]]
    optimizer = torch.optim.SGD([{"params": list(layer.parameters())} for layer in layers], lr=0.1)
    try:
        check_agreement(Prebuilt(optimizer, model).plan)
    except ConfigError as error:
        return error.problem
    return "agreed"


def test_a_group_of_frozen_parameters_on_one_rank_is_no_mismatch():
    assert run_distributed(_frozen_alike, True) == ["agreed"] * 2


def test_a_frozen_parameter_of_another_shape_is_a_mismatch():
    for problem in run_distributed(_frozen_alike, False):
        assert "frozen.weight is frozen (shape [2, 3]) on rank 0" in problem
        assert "frozen (shape [2, 4]) on rank 1" in problem


def _another_optimizer_of_a_part() -> str:
    part = {"type": ["SGD", "torch.optim.SGD"][dist.get_rank()], "lr": 0.1}
    with pytest.raises(ConfigError) as error:
        check_agreement(make_plan(net(), {**CFG, "paramwise_cfg": {"custom_keys": {"2.weight": part}}}))
    return error.value.problem


def test_another_optimizer_of_a_part_is_a_mismatch():
    for problem in run_distributed(_another_optimizer_of_a_part):
        assert "stepped by SGD" in problem
        assert "stepped by torch.optim.SGD" in problem


def test_ranks_with_the_same_plan_agree():
    assert run_distributed(_outcome, None, world=3) == ["agreed"] * 3


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ("options", ["1.weight is norm (", "weight_decay 0.0;", "weight_decay 0.005;"]),
        ("rules", ["0.bias is default (", "0.bias is", "flat (", "by flat"]),
        ("order", ["parameter 1 of the plan is 0.weight on rank 0, but 0.bias on rank 2"]),
        ("shape", ["0.weight is default (", "shape [4, 3]", "shape [5, 3]"]),
        ("frozen", ["0.weight is default (", "frozen (shape [4, 3]) on rank 2"]),
        ("frozen shape", ["3.weight is frozen (shape [4, 2]) on rank 0", "frozen (shape [5, 2]) on rank 2"]),
        ("missing", ["2.bias is default (", "no such parameter on rank 2"]),
        ("own options", ["what else group default has", "momentum 0,", "momentum 0.9,"]),
        ("optimizer", ["the optimizer is SGD on rank 0, but AdamW on rank 2"]),
    ],
)
def test_a_mismatch_is_told_on_every_rank_with_the_first_parameter_and_both_verdicts(odd, said):
    problems = set(run_distributed(_outcome, odd, world=3))
    assert len(problems) == 1
    (problem,) = problems
    assert problem.startswith("the ranks do not agree on the groups")
    assert [text for text in [*said, "on rank 2"] if text not in problem] == []
