"""Schedules: closed forms, windows, composition, and what is refused."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distopt import ConfigError, build_schedule


def optimizer(*lrs: float, cls=torch.optim.SGD, **defaults) -> torch.optim.Optimizer:
    groups = [
        {"params": [torch.nn.Parameter(torch.zeros(1))], "name": f"g{i}", "lr": lr}
        for i, lr in enumerate(lrs or (0.1,))
    ]
    return cls(groups, lr=0.1, **defaults)


def curve(cfgs, steps: int, **kwargs) -> list[float]:
    opt = optimizer()
    schedule = build_schedule(opt, cfgs, **kwargs)
    values = []
    for step in range(steps):
        schedule.apply(step)
        values.append(opt.param_groups[0]["lr"])
    return values


def torch_curve(make, steps: int) -> list[float]:
    opt = optimizer()
    scheduler = make(opt)
    values = []
    for _ in range(steps):
        values.append(opt.param_groups[0]["lr"])
        opt.step()
        scheduler.step()
    return values


def test_linear_reaches_its_end_factor_at_the_last_step_of_the_window():
    cfg = {"type": "LinearLR", "by_epoch": False, "start_factor": 0.1, "begin": 2, "end": 7}
    assert curve(cfg, 9) == pytest.approx([0.1, 0.1, 0.01, 0.0325, 0.055, 0.0775, 0.1, 0.1, 0.1])


def test_linear_is_torchs():
    cfg = {"type": "LinearLR", "by_epoch": False, "start_factor": 0.25, "end_factor": 0.5, "end": 11}
    theirs = torch_curve(lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.25, 0.5, total_iters=10), 15)
    assert curve(cfg, 15) == pytest.approx(theirs, rel=1e-9)


def test_constant_is_torchs():
    cfg = {"type": "ConstantLR", "by_epoch": False, "factor": 0.5, "end": 5}
    theirs = torch_curve(lambda o: torch.optim.lr_scheduler.ConstantLR(o, 0.5, total_iters=4), 8)
    assert curve(cfg, 8) == pytest.approx(theirs, rel=1e-9)


def test_cosine_is_torchs_inside_the_window():
    cfg = {"type": "CosineAnnealingLR", "by_epoch": False, "end": 20, "eta_min": 0.01}
    theirs = torch_curve(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20, eta_min=0.01), 20)
    assert curve(cfg, 20) == pytest.approx(theirs, rel=1e-9)


def test_cosine_rises_again_beyond_t_max():
    cfg = {"type": "CosineAnnealingLR", "by_epoch": False, "T_max": 5, "end": 11}
    values = curve(cfg, 11)
    assert values[5] == pytest.approx(0.0, abs=1e-12)
    assert values[10] == pytest.approx(0.1)


def test_values_stay_after_the_window():
    values = curve({"type": "CosineAnnealingLR", "by_epoch": False, "end": 4}, 8)
    assert values[4:] == [values[3]] * 4


def test_warm_up_then_cosine_compose_by_product():
    cfgs = [
        {"type": "LinearLR", "by_epoch": False, "start_factor": 0.5, "end": 5},
        {"type": "CosineAnnealingLR", "by_epoch": False, "begin": 5, "end": 15, "eta_min_ratio": 0.1},
    ]
    values = curve(cfgs, 15)
    assert values[0] == pytest.approx(0.05)
    assert values[4] == pytest.approx(0.1)
    assert values[14] == pytest.approx(0.1 * (0.1 + 0.9 * (1 + math.cos(math.pi * 0.9)) / 2))


def test_the_horizon_is_the_default_end():
    cfg = {"type": "LinearLR", "by_epoch": False, "start_factor": 0, "end_factor": 1}
    assert curve(cfg, 11, max_steps=11) == pytest.approx([i / 100 for i in range(11)])


def test_a_window_that_a_shortened_run_never_reaches_does_not_act():
    cfg = {"type": "CosineAnnealingLR", "by_epoch": False, "begin": 40}
    assert curve(cfg, 12, max_steps=12) == [0.1] * 12


def test_entries_by_epoch_act_once_an_epoch():
    cfg = {"type": "LinearLR", "start_factor": 0, "end": 3}
    assert curve(cfg, 8, steps_per_epoch=2) == pytest.approx([0, 0, 0.05, 0.05, 0.1, 0.1, 0.1, 0.1])


def test_conversion_multiplies_the_window_by_the_epoch():
    by_epoch = {"type": "CosineAnnealingLR", "end": 3, "T_max": 4, "convert_to_iter_based": True}
    by_step = {"type": "CosineAnnealingLR", "by_epoch": False, "end": 15, "T_max": 20}
    assert curve(by_epoch, 18, steps_per_epoch=5) == curve(by_step, 18)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=20))
def test_the_order_of_asking_changes_nothing(order):
    cfgs = [
        {"type": "LinearLR", "by_epoch": False, "end": 10},
        {"type": "CosineAnnealingLR", "by_epoch": False, "begin": 10, "end": 30},
    ]
    in_order = curve(cfgs, 41)
    opt = optimizer()
    schedule = build_schedule(opt, cfgs)
    for step in order:
        schedule.apply(step)
        assert opt.param_groups[0]["lr"] == in_order[step]


def test_eta_min_keeps_the_ratio_of_the_groups():
    opt = optimizer(0.1, 0.01, 0.0)
    schedule = build_schedule(
        opt, {"type": "CosineAnnealingLR", "by_epoch": False, "T_max": 10, "eta_min": 0.02, "end": 11}
    )
    schedule.apply(10)
    assert [group["lr"] for group in opt.param_groups] == pytest.approx([0.02, 0.002, 0.0])


def test_eta_min_may_be_a_list_with_an_absolute_value_for_each_group():
    opt = optimizer(0.1, 0.01)
    cfg = {"type": "CosineAnnealingLR", "by_epoch": False, "T_max": 10, "eta_min": [0.05, 0.001], "end": 11}
    build_schedule(opt, cfg).apply(10)
    assert [group["lr"] for group in opt.param_groups] == pytest.approx([0.05, 0.001])


def test_groups_restricts_an_entry_by_name():
    opt = optimizer(0.1, 0.1)
    build_schedule(opt, {"type": "ConstantLR", "by_epoch": False, "factor": 0.5, "groups": ["*1"]}).apply(0)
    assert [group["lr"] for group in opt.param_groups] == pytest.approx([0.1, 0.05])


def test_values_reach_the_groups_that_a_loaded_state_has_put_in_place():
    opt = optimizer()
    schedule = build_schedule(opt, {"type": "ConstantLR", "by_epoch": False, "factor": 0.5})
    opt.load_state_dict(opt.state_dict())
    schedule.apply(0)
    assert opt.param_groups[0]["lr"] == pytest.approx(0.05)


def test_momentum_means_betas_where_there_is_no_momentum():
    opt = optimizer(cls=torch.optim.AdamW, betas=(0.8, 0.99))
    build_schedule(opt, {"type": "ConstantMomentum", "by_epoch": False, "factor": 0.5}).apply(0)
    assert opt.param_groups[0]["betas"] == (0.4, 0.99)


def test_any_option_can_be_moved():
    opt = optimizer(weight_decay=0.2)
    cfg = {
        "type": "LinearParamScheduler",
        "param_name": "weight_decay",
        "by_epoch": False,
        "start_factor": 0,
        "end": 3,
    }
    build_schedule(opt, cfg).apply(1)
    assert opt.param_groups[0]["weight_decay"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (
            {"type": "CosinAnnealingLR"},
            r"param_scheduler\.0\.type: unknown type(.|\n)*mean: CosineAnnealingLR",
        ),
        (
            {"type": "LinearLR", "start_facter": 0.1},
            r"start_facter: unknown key(.|\n)*mean: start_factor",
        ),
        ({"type": "LinearLR", "start_factor": 1.5}, r"start_factor: wrong value(.|\n)*1 or less"),
        ({"type": "LinearLR", "start_factor": True}, r"start_factor: wrong type(.|\n)*a number"),
        ({"type": "LinearLR", "begin": 5, "end": 5}, r"end: is not after begin"),
        ({"type": "LinearLR", "by_epoch": True}, r"by_epoch: the length of an epoch is not known"),
        ({"type": "CosineAnnealingLR"}, r"end: missing"),
        (
            {"type": "CosineAnnealingLR", "T_max": 5, "eta_min": 0, "eta_min_ratio": 0.1},
            r"eta_min: given twice",
        ),
        ({"type": "CosineAnnealingLR", "T_max": 5, "eta_min": [1.0, 2.0]}, r"eta_min: wrong length"),
        ({"type": "LinearLR", "groups": ["haed"]}, r"groups\.0: matches no group"),
        ({"type": "LinearMomentum"}, r"the optimizer has no momentum"),
        ({"type": "LinearParamScheduler"}, r"param_name: missing"),
        (
            {
                "type": "CosineAnnealingParamScheduler",
                "param_name": "weight_decay",
                "T_max": 5,
                "eta_min": 0.1,
            },
            r"eta_min: relative to nothing",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(cfg, message):
    # RMSprop has an option `momentum`, so Adagrad, which has neither momentum nor betas.
    with pytest.raises(ConfigError, match=message):
        build_schedule(optimizer(cls=torch.optim.Adagrad), {"by_epoch": False, **cfg})


def test_a_value_in_a_tensor_is_set_in_place_for_cuda_graphs():
    lr = torch.tensor(0.1)
    opt = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=lr, fused=True)
    schedule = build_schedule(opt, {"type": "ConstantLR", "by_epoch": False, "factor": 0.5, "end": 9})
    schedule.apply(0)
    assert opt.param_groups[0]["lr"] is lr
    assert lr.item() == pytest.approx(0.05)
