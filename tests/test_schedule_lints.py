"""What a schedule does that is probably not meant, and that nothing is said of what is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from distopt import build_schedule
from tests.schedules import entry, optimizer

WARM_UP = entry("LinearLR", start_factor=0.01, end=100)
COSINE = entry("CosineAnnealingLR", begin=100)
WSD = entry("WarmupStableDecayLR", warmup="5%", decay="20%")
SHARES = [entry("LinearLR", end="5%"), entry("CosineAnnealingLR", begin="5%", eta_min_ratio=0.1)]


def warnings(*cfgs: Any, max_steps: int | None = 1000, steps_per_epoch: int | None = None, opt: Any = None):
    opt = opt or optimizer(0.1, 0.03)
    built = build_schedule(opt, cfgs, steps_per_epoch=steps_per_epoch, max_steps=max_steps)
    return list(built.warnings)


@pytest.mark.parametrize(
    "cfgs",
    [
        [],
        [WARM_UP, COSINE],
        [COSINE, WARM_UP],
        [WARM_UP, {**COSINE, "end": 1000}],
        [entry("CosineAnnealingLR", eta_min=1e-3)],
        [entry("CosineAnnealingLR", T_max=1000)],
        [WSD],
        [entry("WarmupStableDecayLR", warmup=100, decay=900)],
        [entry("WarmupStableDecayLR", decay=2)],
        [entry("OneCycleLR", eta_max=0.2)],
        [entry("PolyLR")],
        [entry("StepLR", step_size=999)],
        [entry("MultiStepLR", milestones=[600, 800])],
        [entry("ConstantLR", factor=0.5, end=5)],
        [entry("CosineRestartLR", periods=[500, 500], restart_weights=[1, 0.5])],
        [entry("ReduceOnPlateauLR")],
        [entry("ReduceOnPlateauLR"), WARM_UP],
        [WARM_UP, entry("ReduceOnPlateauLR", begin=400)],
        [WARM_UP, entry("ConstantParamScheduler", param_name="weight_decay", factor=0.5, end=900)],
        [{**WARM_UP, "groups": ["g0"]}, {**WARM_UP, "groups": ["g1"], "start_factor": 0.1}],
        [WARM_UP, entry("MultiStepLR", by_epoch=True, milestones=[8, 11])],
        [WARM_UP, entry("StepLR", step_size=100)],
        [WARM_UP, entry("CosineAnnealingLR", begin=99)],
    ],
    ids=str,
)
def test_nothing_is_said_of_an_idiom(cfgs):
    opt = optimizer(0.1, 0.03, weight_decay=0.1)
    assert warnings(*cfgs, opt=opt, steps_per_epoch=50) == []


@pytest.mark.parametrize("cfgs", [[WARM_UP, COSINE], [WSD], SHARES], ids=["steps", "wsd", "shares"])
def test_nothing_is_said_of_a_shortened_run_that_reaches_every_entry(cfgs):
    assert warnings(*cfgs, max_steps=150) == []


@pytest.mark.parametrize("cfgs", [[WSD], SHARES], ids=["wsd", "shares"])
def test_nothing_is_said_of_shares_in_a_run_of_twenty_steps(cfgs):
    assert warnings(*cfgs, max_steps=40) == []


@pytest.mark.parametrize("max_steps", range(2, 20))
def test_shares_in_a_run_of_fewer_than_twenty_steps_do_not_overlap(max_steps):
    assert warnings(*SHARES, max_steps=max_steps) == []


def test_nothing_is_said_of_warm_up_in_steps_and_cosine_in_epochs():
    cosine = entry("CosineAnnealingLR", by_epoch=True, begin=1)
    assert warnings(WARM_UP, cosine, max_steps=950, steps_per_epoch=100) == []


@given(st.integers(2, 2000), st.integers(1, 400))
@example(29, 7)  # 29 / 7 * 7 > 29
@example(367, 366)  # 367 / 366 * 366 < 367
def test_nothing_is_said_of_a_cosine_by_epoch_whatever_the_lengths_of_run_and_epoch(max_steps, epoch):
    cosine = entry("CosineAnnealingLR", by_epoch=True, eta_min=0.001)
    said = warnings(cosine, max_steps=max_steps, steps_per_epoch=epoch)
    assert said == [] or max_steps <= epoch  # a run of one epoch has its first value alone


@pytest.mark.parametrize(
    "cfg",
    [
        entry("StepLR", step_size=3000),
        entry("MultiStepLR", milestones=[30000]),
        entry("LinearLR"),
        WARM_UP,
        entry("CosineAnnealingLR", T_max=5000),
    ],
    ids=lambda cfg: cfg["type"],
)
def test_nothing_is_said_where_the_length_of_the_run_is_not_known(cfg):
    assert warnings(cfg, max_steps=None) == []


@pytest.mark.parametrize(
    "cfg",
    [
        COSINE,
        entry("StepLR", step_size=1, begin=500),
        entry("ReduceOnPlateauLR", begin=100),
        entry("ConstantLR", by_epoch=True, begin=10),
    ],
    ids=lambda cfg: cfg["type"],
)
def test_an_entry_that_begins_when_the_run_has_ended_never_acts(cfg):
    (warning,) = warnings(cfg, max_steps=100, steps_per_epoch=10)
    assert warning.startswith("param_scheduler.0: begins at step ")
    assert warning.endswith("and the run ends at 100: it never acts")


def test_a_window_that_ends_after_the_run_is_broken_off():
    (warning,) = warnings(WARM_UP, max_steps=99)
    assert warning == "param_scheduler.0: its window ends at step 100, and the run at 99: it is broken off"


def test_a_window_of_epochs_that_ends_after_the_run_is_broken_off():
    cosine = entry("CosineAnnealingLR", by_epoch=True, end=12)
    (warning,) = warnings(cosine, max_steps=590, steps_per_epoch=50)
    assert "its window ends at step 600, and the run at 590" in warning


def test_each_entry_that_is_broken_off_or_left_out_is_named():
    first, second = warnings(WARM_UP, COSINE, max_steps=50)
    assert first.startswith("param_scheduler.0: its window ends")
    assert second.startswith("param_scheduler.1: begins at step 100")


def test_warmup_and_decay_longer_than_the_window_are_told():
    (warning,) = warnings(entry("WarmupStableDecayLR", warmup=600, decay=500))
    assert warning == "param_scheduler.0: warmup and decay take 1,100, and the window has 1,000"


@pytest.mark.parametrize(
    "cfg",
    [
        entry("ConstantLR", factor=1),
        entry("LinearLR", start_factor=1),
        entry("StepLR", step_size=1000),
        entry("StepLR", step_size=1, gamma=1),
        entry("MultiStepLR", milestones=[1000]),
        entry("ExponentialLR", gamma=1),
        entry("CosineAnnealingLR", eta_min_ratio=1),
        entry("PolyLR", begin=999),
        entry("CosineAnnealingLR", eta_min=[0.1, 0.03]),
    ],
    ids=str,
)
def test_an_entry_whose_factor_is_always_1_has_no_effect(cfg):
    (warning,) = warnings(cfg)
    assert warning == "param_scheduler.0: its factor is 1 in the whole run: it has no effect"


def test_an_entry_that_acts_in_the_last_step_alone_has_an_effect():
    assert warnings(entry("MultiStepLR", milestones=[6999]), max_steps=7000) == []


def test_an_entry_that_acts_in_the_first_step_alone_has_an_effect():
    assert warnings(entry("LinearLR", start_factor=0.1, end=2), max_steps=7000) == []


def test_an_entry_that_moves_zeros_alone_has_no_effect():
    (warning,) = warnings(entry("LinearMomentum", end=10))
    assert warning == "param_scheduler.0: all momentum that it moves is 0: it has no effect"


def test_one_group_that_is_not_zero_is_enough_for_an_effect():
    assert warnings(WARM_UP, opt=optimizer(0.0, 0.1)) == []


def test_an_entry_that_moves_one_group_alone_has_an_effect():
    # The list's first value is the group's base.
    assert warnings(entry("CosineAnnealingLR", eta_min=[0.1, 0.001])) == []


def test_overlapping_windows_multiply():
    (warning,) = warnings(WARM_UP, {**COSINE, "begin": 60})
    assert warning == (
        "param_scheduler.0 and param_scheduler.1 both move lr in steps 60 to 100: their factors multiply"
    )


def test_entries_that_act_together_in_a_few_steps_of_their_overlap_multiply():
    (warning,) = warnings(WARM_UP, entry("MultiStepLR", milestones=[98]))
    assert warning.endswith("both move lr in steps 0 to 100: their factors multiply")


def test_an_overlap_in_a_run_of_unknown_length_has_no_end():
    (warning,) = warnings(entry("StepLR", step_size=3000), entry("ConstantLR"), max_steps=None)
    assert warning.endswith("both move lr from step 0 on: their factors multiply")


def test_large_steps_are_told_in_full():
    (warning,) = warnings(entry("LinearLR", end=1_234_567), max_steps=1_234_566)
    assert "ends at step 1,234,567, and the run at 1,234,566" in warning


def test_windows_that_overlap_after_the_run_do_not_overlap():
    said = warnings(entry("LinearLR", end=90), entry("PolyLR", begin=80, end=120), max_steps=70)
    assert not [warning for warning in said if "multiply" in warning]


def test_overlapping_windows_of_different_options_are_meant():
    momentum = entry("LinearMomentum", start_factor=0.9, end=100)
    assert warnings(WARM_UP, momentum, opt=optimizer(momentum=0.9)) == []


def test_a_gap_between_two_windows_is_told():
    (warning,) = warnings(WARM_UP, {**COSINE, "begin": 150})
    assert warning == (
        "param_scheduler.0 ends at step 100 and param_scheduler.1 begins at step 150:"
        " in between lr stays where it is"
    )


def test_a_gap_before_an_entry_that_never_acts_is_none():
    (warning,) = warnings(WARM_UP, {**COSINE, "begin": 150}, max_steps=120)
    assert warning.endswith("it never acts")


def test_a_gap_is_told_once_for_all_groups():
    said = warnings(WARM_UP, {**COSINE, "begin": 150}, opt=optimizer(*[0.1] * 5))
    assert len(said) == 1


def test_a_window_of_other_groups_closes_no_gap():
    first, second = {**WARM_UP, "groups": ["g0"]}, {**COSINE, "begin": 150, "groups": ["g0"]}
    between = entry("LinearLR", begin=100, end=150, groups=["g1"])
    (warning,) = warnings(first, second, between)
    assert "in between lr stays" in warning


def test_groups_that_no_entry_moves_are_told():
    (warning,) = warnings({**WARM_UP, "groups": ["g0"]}, opt=optimizer(0.1, 0.1, 0.1))
    assert warning.startswith("no entry of param_scheduler moves lr of ")
    assert "g1" in warning
    assert "g2" in warning


def test_groups_that_a_plateau_alone_moves_are_moved():
    assert warnings({**WARM_UP, "groups": ["g0"]}, entry("ReduceOnPlateauLR", groups=["g1"])) == []
