"""Ranks that would train different groups are found before they train."""

from __future__ import annotations

import pytest
import torch.distributed as dist
from torch import nn

from distopt import ConfigError, make_plan
from distopt.optim import check_agreement
from tests.kit import run_distributed

CFG = {"type": "SGD", "lr": 0.1, "weight_decay": 0.01, "paramwise_cfg": {"norm_decay_mult": 0}}


def net(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(3, width), nn.LayerNorm(width), nn.Linear(width, 2))


def _outcome(odd: str | None) -> str:
    model, cfg = net(), CFG
    if dist.get_rank() == 2:
        if odd == "options":
            cfg = {**CFG, "paramwise_cfg": {"norm_decay_mult": 0.5}}
        elif odd == "shape":
            model = net(width=5)
        elif odd == "frozen":
            model[0].weight.requires_grad_(False)
        elif odd == "missing":
            model[2].bias = None
        elif odd == "optimizer":
            cfg = {**CFG, "type": "AdamW"}
        elif odd == "rules":
            cfg = {**CFG, "paramwise_cfg": {"norm_decay_mult": 0, "flat_decay_mult": 1}}
        elif odd == "order":
            model[0].register_parameter("weight", model[0]._parameters.pop("weight"))
    try:
        check_agreement(make_plan(model, cfg))
    except ConfigError as error:
        return error.problem
    return "agreed"


def test_ranks_with_the_same_plan_agree():
    assert run_distributed(_outcome, None, world=3) == ["agreed"] * 3


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ("options", ["1.weight is norm (", "weight_decay 0.0;", "weight_decay 0.005;"]),
        ("rules", ["0.bias is default (", "0.bias is", "flat (", "by flat"]),
        ("order", ["parameter 1 of the plan is 0.weight on rank 0, but 0.bias on rank 2"]),
        ("shape", ["0.weight is default (", "shape [4, 3]", "shape [5, 3]"]),
        ("frozen", ["0.weight is default (", "frozen on rank 2"]),
        ("missing", ["2.bias is default (", "no such parameter on rank 2"]),
        ("optimizer", ["the optimizer is SGD on rank 0, but AdamW on rank 2"]),
    ],
)
def test_a_mismatch_is_told_on_every_rank_with_the_first_parameter_and_both_verdicts(odd, said):
    problems = set(run_distributed(_outcome, odd, world=3))
    assert len(problems) == 1
    (problem,) = problems
    assert problem.startswith("the ranks do not agree on the groups")
    assert [text for text in [*said, "on rank 2"] if text not in problem] == []
