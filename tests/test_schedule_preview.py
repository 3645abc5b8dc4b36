"""What a schedule will do, as rows and curves."""

from __future__ import annotations

import pytest
import torch

from distopt.config import SchedulerConfig, validate
from distopt.schedule import build_schedule, overview
from distopt.schedule.preview import curves, edges, needs_epochs, plateaus, preview, spread

WARMUP = {"type": "LinearLR", "by_epoch": False, "start_factor": 0.1, "end": 4}
COSINE = {"type": "CosineAnnealingLR", "by_epoch": False, "begin": 4, "end": 12}
DECAY = {"type": "LinearParamScheduler", "param_name": "weight_decay", "by_epoch": False, "end": 12}
PLATEAU = {"type": "ReduceOnPlateauLR", "by_epoch": False}


def optimizer(kind=torch.optim.AdamW, **options):
    groups = [
        {"params": [torch.zeros(1)], "name": "default"},
        {"params": [torch.zeros(1)], "name": "norm", "weight_decay": 0.0},
        {"params": [torch.zeros(1)], "name": "head", "lr": 0.5},
    ]
    return kind(groups, lr=1.0, weight_decay=0.1, **options)


def rows(*cfgs, steps=range(1, 13), of=None):
    of = of or optimizer()
    return list(preview(build_schedule(of, cfgs, max_steps=12), of, steps))


def test_row_n_has_the_values_of_step_n_minus_1():
    of = optimizer()
    schedule = build_schedule(of, [WARMUP, COSINE], max_steps=12)
    [row] = preview(schedule, of, [7])
    schedule.apply(6)
    assert row.step == 7
    assert row.values == {"lr": {group["name"]: group["lr"] for group in of.param_groups}}


def test_without_entries_there_is_the_lr_alone():
    assert rows(steps=[3]) == [(3, {"lr": {"default": 1.0, "norm": 1.0, "head": 0.5}})]


def test_an_option_that_an_entry_moves_is_there_of_every_group():
    [row] = rows({**DECAY, "groups": ["default"]}, steps=[1])
    assert row.values["weight_decay"] == {"default": 0.1 / 3, "norm": 0.0, "head": 0.1}


@pytest.mark.parametrize(
    ("of", "base"),
    [
        (optimizer(betas=(0.8, 0.99)), 0.8),
        (optimizer(torch.optim.SGD, momentum=0.9), 0.9),
    ],
    ids=["betas", "momentum"],
)
def test_momentum_is_that_of_the_optimizer_whatever_it_calls_it(of, base):
    [row] = rows({"type": "ConstantMomentum", "by_epoch": False, "factor": 0.5, "end": 5}, steps=[1], of=of)
    assert row.values["momentum"]["default"] == base * 0.5


def test_groups_of_equal_values_share_a_curve():
    found = curves(rows(WARMUP, COSINE), "lr")
    assert [(curve.groups, curve.name) for curve in found] == [
        (("default", "norm"), "default +1"),
        (("head",), "head"),
    ]
    assert all(curve.moves for curve in found)


def test_groups_that_differ_in_a_single_row_do_not():
    found = curves(rows({**WARMUP, "end": 2, "groups": ["norm"]}), "lr")
    assert [curve.groups for curve in found] == [("default",), ("norm",), ("head",)]


def test_edges_are_where_the_run_and_its_windows_begin_and_end():
    schedule = build_schedule(optimizer(), [WARMUP, {**COSINE, "begin": 6, "end": 30}], max_steps=12)
    assert edges(schedule, 12) == {1, 4, 7, 12}


@pytest.mark.parametrize(("last", "count"), [(1, 10), (7, 10), (600, 10), (10**6, 2000)])
def test_spread_steps_lie_in_the_run_and_end_with_its_last(last, count):
    found = sorted(spread(last, count))
    assert found[0] >= 1
    assert found[-1] == last
    assert len(found) == min(last, count)


def test_plateaus_are_the_entries_that_wait_for_evaluations():
    schedule = build_schedule(optimizer(), [WARMUP, PLATEAU], max_steps=12)
    assert [window.key for window in plateaus(schedule)] == ["param_scheduler.1"]


@pytest.mark.parametrize(
    ("cfg", "expected"),
    [
        (WARMUP, False),
        ({"type": "CosineAnnealingLR"}, True),
        ({"type": "CosineAnnealingLR", "convert_to_iter_based": True}, False),
        ({"type": "CosineAnnealingLR", "convert_to_iter_based": True, "begin": 1}, True),
        ({"type": "CosineAnnealingLR", "convert_to_iter_based": True, "T_max": 3}, True),
        ({"type": "CosineAnnealingLR", "begin": "5%"}, False),
        ({"type": "CosineAnnealingLR", "begin": "5%", "end": 3}, True),
    ],
)
def test_epochs_are_needed_exactly_where_the_schedule_cannot_be_built_without(cfg, expected):
    entry = validate(SchedulerConfig, cfg, key="param_scheduler.0")
    assert needs_epochs([entry]) is expected
    if expected:
        with pytest.raises(ValueError, match="the length of an epoch is not known"):
            build_schedule(optimizer(), [entry], max_steps=12)
    else:
        build_schedule(optimizer(), [entry], max_steps=12)


def many_groups(count):
    groups = [
        {"params": [torch.zeros(1)], "name": f"backbone.layer_{i:02}", "lr": 0.5**i} for i in range(count)
    ]
    return torch.optim.SGD(groups)


def test_an_overview_draws_groups_that_move_alike_together():
    of = optimizer()
    lines = overview(build_schedule(of, [WARMUP, COSINE], max_steps=12), of, 12).splitlines()
    assert lines[0] == lines[-1] == "```"
    assert lines[1:3] == ["lr", "step  default +1     head"]
    assert [line.split()[1:] for line in lines if line.startswith(("  a", "  b"))] == [
        ["default,", "norm"],
        ["head"],
    ]


def test_an_overview_of_more_curves_than_a_plot_tells_apart_has_all_in_a_table():
    of = many_groups(30)
    text = overview(build_schedule(of, [WARMUP, COSINE], max_steps=12), of, 12)
    head, *table = (line for line in text.splitlines() if line.startswith("|"))
    assert head == "| lr | step 1 | step 3 | step 4 | step 5 | step 6 | step 9 | step 12 |"
    assert [row.split()[1] for row in table[1:]] == [f"backbone.layer_{i:02}" for i in range(30)]
    assert "backb…e.layer_29" in text  # the end of a name is what tells it from others
    assert " more (the table below has all)" in text


def test_an_overview_of_as_many_curves_as_a_plot_tells_apart_draws_all():
    of = many_groups(6)
    text = overview(build_schedule(of, [WARMUP, COSINE], max_steps=12), of, 12)
    assert "not shown" not in text
    assert all(f"  {letter}  backbone.layer_{i:02}\n" in text for i, letter in enumerate("abcdef"))


def test_an_overview_says_what_evaluation_will_decide():
    of = optimizer()
    text = overview(build_schedule(of, [PLATEAU], max_steps=12), of, 12)
    assert "param_scheduler.0 lowers lr where evaluation says so: not in these values" in text
