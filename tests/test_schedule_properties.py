"""What holds of every schedule: it has no memory, and what makes no sense is refused."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distopt import ConfigError, build_schedule
from distopt.config import load_config
from tests.configs import MINIMAL
from tests.schedules import curve, entry, optimizer, values

STEPS = 60
ENTRIES = {
    "constant": entry("ConstantLR", begin=3, end=20),
    "linear": entry("LinearLR", begin=2, end=33),
    "step": entry("StepLR", step_size=7, begin=4),
    "milestones": entry("MultiStepLR", milestones=[5, 5, 40]),
    "exponential": entry("ExponentialLR", gamma=0.97, end=50),
    "cosine": entry("CosineAnnealingLR", T_max=25, eta_min=0.001),
    "poly": entry("PolyLR", power=0.9, begin=5, end=55),
    "one cycle": entry("OneCycleLR", eta_max=0.2, three_phase=True, end=50),
    "restart": entry("CosineRestartLR", periods=[10, 30], restart_weights=[1, 0.5], begin=7),
    "plateau": entry("ReduceOnPlateauLR"),
    "wsd": entry("WarmupStableDecayLR", warmup="10%", decay=17, decay_type="sqrt", lo=0.01),
    "by epoch": entry("CosineAnnealingLR", by_epoch=True, begin=2),
    "converted": entry("LinearLR", by_epoch=True, convert_to_iter_based=True, begin=1, end=4),
    "shares": entry("PolyLR", begin="5%", end="87.5%"),
}
LENGTHS = {"steps_per_epoch": 7, "max_steps": STEPS}
every_entry = pytest.mark.parametrize("cfg", ENTRIES.values(), ids=ENTRIES)


@every_entry
@given(order=st.lists(st.integers(0, STEPS + 20), min_size=1, max_size=30))
def test_the_order_of_asking_changes_nothing(cfg, order):
    in_order = curve(cfg, STEPS + 21, optimizer(0.1, 0.03), **LENGTHS)
    opt = optimizer(0.1, 0.03)
    schedule = build_schedule(opt, cfg, **LENGTHS)
    for step in order:
        schedule.apply(step)
        assert values(opt) == in_order[step]


@every_entry
@pytest.mark.parametrize("begin", [1, 19, STEPS - 1])
def test_a_run_that_is_resumed_in_the_middle_goes_on_exactly(cfg, begin):
    uninterrupted = curve(cfg, STEPS, optimizer(0.1, 0.03), **LENGTHS)
    opt = optimizer(0.1, 0.03)
    schedule = build_schedule(opt, cfg, **LENGTHS)
    # The saved groups hold what was used last, which is no base.
    saved = optimizer(*uninterrupted[begin - 1]).state_dict()
    opt.load_state_dict(saved)
    resumed = []
    for step in range(begin, STEPS):
        schedule.apply(step)
        resumed.append(values(opt))
    assert resumed == uninterrupted[begin:]


@every_entry
def test_the_ratio_of_two_groups_stays(cfg):
    for one, other in curve(cfg, STEPS, optimizer(0.1, 0.025), **LENGTHS):
        assert other == pytest.approx(one / 4, rel=1e-12)


@every_entry
def test_a_group_at_0_stays_at_0(cfg):
    assert curve(cfg, STEPS, optimizer(0.0), **LENGTHS) == [[0.0]] * STEPS


@given(st.integers(1, 30), st.integers(1, 200), st.floats(0.1, 3))
def test_poly_by_epoch_never_goes_below_0_in_a_last_epoch_that_is_not_whole(epoch, max_steps, power):
    cfg = entry("PolyLR", by_epoch=True, power=power)
    for (lr,) in curve(cfg, max_steps, steps_per_epoch=epoch, max_steps=max_steps):
        assert 0 <= lr <= 0.1


stable = st.fixed_dictionaries(
    {
        "warmup": st.integers(0, 40),
        "decay": st.integers(1, 40),
        "decay_type": st.sampled_from(["linear", "sqrt", "cosine"]),
        "lo": st.sampled_from([0.0, 0.01, 0.5, 1.0]),
    }
)


@given(stable, st.integers(0, 60), st.integers(0, 9))
def test_warmup_stable_decay_is_never_0_and_never_above_1(arguments, level, begin):
    end = begin + arguments["warmup"] + level + arguments["decay"]
    cfg = entry("WarmupStableDecayLR", **arguments, begin=begin, end=end)
    assert all(0 < lr <= 0.1 for (lr,) in curve(cfg, end + 10))


@given(stable, st.integers(0, 60))
def test_warmup_stable_decay_rises_then_is_level_then_falls(arguments, level):
    warmup, decay = arguments["warmup"], arguments["decay"]
    length = warmup + level + decay
    lrs = [lr for (lr,) in curve(entry("WarmupStableDecayLR", **arguments, end=length), length)]
    assert lrs[:warmup] == sorted(set(lrs[:warmup]))
    assert lrs[warmup : warmup + level + 1] == pytest.approx([0.1] * (level + 1))
    assert lrs[warmup + level :] == sorted(lrs[warmup + level :], reverse=True)
    if warmup:
        assert lrs[0] == pytest.approx(0.1 / warmup)
        assert lrs[warmup - 1] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("decay_type", "left"),
    [
        ("linear", 1 / 20),
        ("sqrt", 1 - math.sqrt(19 / 20)),
        ("cosine", (1 + math.cos(math.pi * 19 / 20)) / 2),
    ],
)
def test_the_last_step_of_warmup_stable_decay_is_just_above_lo(decay_type, left):
    cfg = entry("WarmupStableDecayLR", warmup=5, decay=20, decay_type=decay_type, lo=0.2)
    last = curve(cfg, 100, max_steps=100)[-1]
    assert last == pytest.approx([0.1 * (0.2 + 0.8 * left)])


def test_after_its_window_warmup_stable_decay_stays():
    values = curve(entry("WarmupStableDecayLR", decay=5, end=10), 20)
    assert values[10:] == [values[9]] * 10


def test_lengths_of_warmup_stable_decay_may_be_shares_of_the_run():
    shares = entry("WarmupStableDecayLR", warmup="5%", decay="12.5%")
    steps = entry("WarmupStableDecayLR", warmup=10, decay=25)
    assert curve(shares, 200, max_steps=200) == curve(steps, 200, max_steps=200)


def test_lo_is_another_name_of_eta_min_ratio():
    cfgs = [entry("WarmupStableDecayLR", decay=10, **{name: 0.3}) for name in ("lo", "eta_min_ratio")]
    assert curve(cfgs[0], 30, max_steps=30) == curve(cfgs[1], 30, max_steps=30)


@given(st.integers(1, 500), st.decimals(0, 100, places=1), st.decimals(0, 100, places=1))
def test_begin_and_end_may_be_shares_of_the_run_and_are_rounded_down(max_steps, one, other):
    first, second = (int(max_steps * share / 100) for share in sorted([one, other]))
    shares = entry("LinearLR", start_factor=0.1, begin=f"{min(one, other)}%", end=f"{max(one, other)}%")
    steps = [entry("LinearLR", start_factor=0.1, begin=first, end=second)] if first < second else []
    assert curve(shares, 50, max_steps=max_steps) == curve(steps, 50)


@given(st.integers(1, 40), st.floats(0, 5), st.floats(0.01, 5))
def test_begin_and_end_may_be_parts_of_epochs_and_are_rounded_down(epoch, begin, length):
    end = begin + length
    first, second = int(begin * epoch), int(end * epoch)
    parts = entry("LinearLR", by_epoch=True, convert_to_iter_based=True, begin=begin, end=end)
    steps = [entry("LinearLR", begin=first, end=second)] if first < second else []
    assert curve(parts, 50, steps_per_epoch=epoch) == curve(steps, 50)


def test_a_warm_up_of_no_step_in_a_short_run_leaves_lr_as_it_is():
    assert curve(entry("LinearLR", start_factor=0.01, end="5%"), 10, max_steps=10) == [[0.1]] * 10


def test_beside_a_share_an_end_may_be_a_part_of_an_epoch():
    parts = entry("CosineAnnealingLR", by_epoch=True, begin="10%", end=7.25)
    steps = entry("CosineAnnealingLR", begin=10, end=72)
    assert curve(parts, 100, steps_per_epoch=10, max_steps=100) == curve(steps, 100)


def test_a_whole_number_of_epochs_may_be_written_as_a_float():
    cfg = entry("LinearLR", by_epoch=True, begin=1.0, end=4.0)
    whole = {**cfg, "begin": 1, "end": 4}
    assert curve(cfg, 40, steps_per_epoch=10) == curve(whole, 40, steps_per_epoch=10)


@pytest.mark.filterwarnings("error")
def test_parts_of_epochs_come_through_a_resolved_config(tmp_path):
    entries = "param_scheduler: [{type: LinearLR, convert_to_iter_based: true, begin: 0.5, end: 2}]"
    (tmp_path / "cfg.yaml").write_text(MINIMAL + entries)
    text = load_config(tmp_path / "cfg.yaml").to_yaml()
    (tmp_path / "again.yaml").write_text(text)
    (one,) = load_config(tmp_path / "again.yaml").param_scheduler
    assert "begin: 0.5\n" in text
    assert "end: 2\n" in text
    assert (one.begin, one.end) == (0.5, 2)


@pytest.mark.parametrize(
    "cfg",
    [
        entry("ExponentialLR", gamma=1.1),
        entry("StepLR", step_size=1, gamma=1.1),
        entry("MultiStepLR", milestones=[0] * 8000, gamma=1.1),
    ],
    ids=lambda cfg: cfg["type"],
)
def test_a_value_that_grows_without_end_is_infinite_and_no_crash(cfg):
    opt = optimizer()
    build_schedule(opt, cfg).apply(9999)
    assert values(opt) == [math.inf]


@pytest.mark.parametrize("name", ["ExponentialLR", "StepLR"])
def test_what_a_refused_gamma_may_be_at_most_is_above_1_and_would_do(name):
    arguments = {"step_size": 1} if name == "StepLR" else {}
    with pytest.raises(ConfigError, match="at most") as error:
        build_schedule(optimizer(), entry(name, gamma=1.1, **arguments), max_steps=10_000)
    (largest,) = re.findall(r"at most ([\d.]+)", str(error.value))
    assert 1.07 < float(largest) < 1.1
    build_schedule(optimizer(), entry(name, gamma=float(largest), **arguments), max_steps=10_000)


def test_a_share_makes_the_whole_entry_one_in_steps():
    share = entry("CosineAnnealingLR", by_epoch=True, begin="10%", end=9, T_max=8)
    steps = entry("CosineAnnealingLR", begin=10, end=90, T_max=80)
    assert curve(share, 100, steps_per_epoch=10, max_steps=100) == curve(steps, 100)


def test_the_default_end_of_an_entry_by_epoch_is_that_of_the_run():
    cfg = entry("LinearLR", by_epoch=True, start_factor=0.5)
    assert curve(cfg, 40, steps_per_epoch=10, max_steps=40) == curve(
        {**cfg, "end": 4}, 40, steps_per_epoch=10
    )


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (entry("LinearLR", begin=5, end=4), r"0\.end: is not after begin \(5\)"),
        (entry("LinearLR", begin="50%", end=10), r"0\.end: is not after begin"),
        (entry("LinearLR", begin=-1), r"0\.begin: "),
        (entry("LinearLR", begin="105%"), r'0\.begin: wrong (.|\n)*a number or a share of the run: "5%"'),
        (entry("LinearLR", end="5"), r"0\.end: "),
        (entry("LinearLR", end=math.inf), r"0\.end: "),
        (entry("LinearLR", end=-3), r"0\.end: wrong value(.|\n)*0 or more"),
        (entry("LinearLR", end=0), r"0\.end: is not after begin \(0\)"),
        (entry("LinearLR", begin=0.5), r"0\.begin: is not whole(.|\n)*steps"),
        (entry("LinearLR", end=1.5), r"0\.end: is not whole(.|\n)*steps"),
        (entry("LinearLR", end="5%", begin=1.5), r"0\.begin: is not whole(.|\n)*steps"),
        (entry("LinearLR", by_epoch=True, begin=0.5), r"0\.begin: is not whole(.|\n)*convert_to_iter_based"),
        (entry("StepLR", step_size=1, gamma=1e200, end=3), r"0\.gamma: multiplied 2 times(.|\n)*1e\+200"),
        (entry("ExponentialLR", gamma=1e4), r"0\.gamma: multiplied 99 times(.|\n)*at most 1299\.2"),
        (entry("MultiStepLR", milestones=[1, 1, 500], gamma=1e200), r"0\.gamma: multiplied 2 times"),
        (entry("OneCycleMomentum", eta_max=1), r"0\.type: unknown type(.|\n)*did you mean: OneCycleLR"),
        (entry("OneCycleParamScheduler", eta_max=1), r"0\.type: unknown type(.|\n)*OneCycleLR"),
        (entry("LinearLR", start_factor=math.nan), r"0\.start_factor: "),
        (entry("LinearLR", end_factor=-0.1), r"0\.end_factor: "),
        (entry("ConstantLR", factor=1.1), r"0\.factor: "),
        (entry("StepLR"), r"0\.step_size: missing"),
        (entry("StepLR", step_size=0), r"0\.step_size: "),
        (entry("StepLR", step_size=2, gamma=-0.1), r"0\.gamma: "),
        (entry("ExponentialLR"), r"0\.gamma: missing"),
        (entry("ExponentialLR", gamma=math.inf), r"0\.gamma: "),
        (entry("ExponentialLR", gamma=math.nan), r"0\.gamma: "),
        (entry("MultiStepLR", milestones=[]), r"0\.milestones: "),
        (entry("MultiStepLR", milestones=[3, 2]), r"0\.milestones: out of order(.|\n)*\[2, 3\]"),
        (entry("MultiStepLR", milestones=[-1, 2]), r"0\.milestones\.0: "),
        (entry("CosineAnnealingLR", T_max=0), r"0\.T_max: "),
        (entry("CosineAnnealingLR", eta_min=math.nan), r"0\.eta_min"),
        (entry("CosineAnnealingLR", eta_min=-1), r"0\.eta_min"),
        (entry("CosineAnnealingLR", eta_min_ratio=1.5), r"0\.eta_min_ratio: "),
        (entry("CosineAnnealingLR", eta_min=0, eta_min_ratio=0), r"0\.eta_min: given twice"),
        (entry("PolyLR", eta_min=0.1, eta_min_ratio=0.1), r"0\.eta_min: given twice"),
        (entry("PolyLR", power=0), r"0\.power: "),
        (entry("PolyLR", power=math.inf), r"0\.power: "),
        (entry("OneCycleLR"), r"0\.eta_max: missing"),
        (entry("OneCycleLR", eta_max=math.inf), r"0\.eta_max"),
        (entry("OneCycleLR", eta_max=[1.0, 2.0]), r"0\.eta_max: wrong length"),
        (entry("OneCycleLR", eta_max=1, pct_start=1.1), r"0\.pct_start: "),
        (entry("OneCycleLR", eta_max=1, div_factor=0), r"0\.div_factor: "),
        (entry("OneCycleLR", eta_max=1, final_div_factor=-1), r"0\.final_div_factor: "),
        (entry("OneCycleLR", eta_max=1, anneal_strategy="cosine"), r"0\.anneal_strategy: "),
        (entry("CosineRestartLR", periods=[]), r"0\.periods: "),
        (entry("CosineRestartLR", periods=[5, 0]), r"0\.periods\.1: "),
        (entry("CosineRestartLR", periods=[5, 5]), r"0\.restart_weights: wrong length(.|\n)*2 periods"),
        (entry("CosineRestartLR", periods=[5], restart_weights=[-1]), r"0\.restart_weights\.0: "),
        (entry("WarmupStableDecayLR"), r"0\.decay: missing"),
        (entry("WarmupStableDecayLR", decay=5, decay_type="root"), r"0\.decay_type: (.|\n)*sqrt"),
        (entry("WarmupStableDecayLR", decay=0), r"0\.decay"),
        (entry("WarmupStableDecayLR", decay=5, warmup=-1), r"0\.warmup"),
        (entry("WarmupStableDecayLR", decay=5, lo=0.1, eta_min_ratio=0.1), r"0\.lo: given twice"),
        (entry("LinearLR", convert_to_iter_based=True), r"convert_to_iter_based: has nothing to convert"),
        (entry("LinearLR", by_epoch=True), r"by_epoch: the length of an epoch is not known"),
        (
            entry("StepLR", by_epoch=True, convert_to_iter_based=True, step_size=2),
            r"by_epoch: the length of an",
        ),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_by_name(cfg, message):
    with pytest.raises(ConfigError, match=message):
        build_schedule(optimizer(), cfg, max_steps=100)


@pytest.mark.parametrize(
    "cfg",
    [
        entry("CosineAnnealingLR"),
        entry("PolyLR"),
        entry("OneCycleLR", eta_max=1),
        entry("WarmupStableDecayLR", decay=5),
    ],
    ids=lambda cfg: cfg["type"],
)
def test_what_needs_an_end_is_refused_where_there_is_none(cfg):
    with pytest.raises(ConfigError, match=r"param_scheduler\.0\.end: missing(.|\n)*max_steps is not known"):
        build_schedule(optimizer(), cfg)


@pytest.mark.parametrize("length", [{"begin": "5%"}, {"end": "5%"}])
def test_a_share_of_a_run_whose_length_is_not_known_is_refused(length):
    with pytest.raises(ConfigError, match="a share of a run whose length is not known"):
        build_schedule(optimizer(), entry("LinearLR", **length))


def test_an_absolute_value_where_the_optimizer_has_none_of_its_own_is_refused():
    opt = torch.optim.AdamW(optimizer().param_groups, lr=0.1, weight_decay=0)
    cfg = entry("CosineAnnealingParamScheduler", param_name="weight_decay", T_max=5, eta_min=0.1)
    with pytest.raises(ConfigError, match=r"eta_min: relative to nothing(.|\n)*eta_min_ratio"):
        build_schedule(opt, cfg)


def test_every_wrong_argument_of_an_entry_is_told_at_once():
    with pytest.raises(ConfigError) as error:
        build_schedule(optimizer(), entry("LinearLR", start_factor=2, end_factor=-1))
    told: list[Any] = [error.value, *error.value.others]
    assert [one.key for one in told] == [
        "param_scheduler.0.start_factor",
        "param_scheduler.0.end_factor",
    ]
