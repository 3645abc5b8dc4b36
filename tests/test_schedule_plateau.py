"""ReduceOnPlateau: against MMEngine's and torch's, and what is distopt's own about it."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distopt import ConfigError, build_schedule
from tests.schedules import Values, curve, entry, optimizer, values

EPOCH = 4
LRS = (0.1, 0.03)
PLATEAU = {"monitor": "val/loss", "factor": 0.5, "patience": 1}

numbers = st.one_of(
    st.floats(-2, 2).map(lambda x: round(x, 2)),  # often close to each other
    st.floats(-1e3, 1e3),
    st.sampled_from([math.nan, math.inf, -math.inf, 0.0]),
)
sequences = st.lists(numbers, min_size=1, max_size=40)
rules = st.fixed_dictionaries(
    {
        "rule": st.sampled_from(["less", "greater"]),
        "factor": st.sampled_from([0.0, 0.1, 0.37, 0.9]),
        "patience": st.integers(0, 4),
        "threshold": st.sampled_from([0.0, 1e-4, 0.1]),
        "threshold_rule": st.sampled_from(["rel", "abs"]),
        "cooldown": st.integers(0, 4),
        "eps": st.sampled_from([0.0, 1e-8, 0.004]),
    }
)


def plateau(**arguments: Any) -> dict[str, Any]:
    return entry("ReduceOnPlateauLR", **{**PLATEAU, **arguments})


def observed(
    cfg: Any, metrics: list[float], opt: Any = None, param: str = "lr", per: int = 1
) -> list[Values]:
    """The values after each evaluation; `per` steps go before each."""
    opt = opt or optimizer(*LRS)
    schedule = build_schedule(opt, cfg, steps_per_epoch=EPOCH)
    all_values = []
    for i, metric in enumerate(metrics, 1):
        schedule.apply(i * per - 1)
        schedule.observe({"val/loss": metric})
        schedule.apply(i * per)
        all_values.append(values(opt, param))
    return all_values


def torchs(metrics: list[float], rule: str, threshold_rule: str, min_value: Any, **arguments: Any):
    opt = optimizer(*LRS)
    names = {"mode": "min" if rule == "less" else "max", "threshold_mode": threshold_rule}
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(opt, **names, min_lr=min_value, **arguments)
    all_values = []
    for metric in metrics:
        scheduler.step(metric)
        all_values.append(values(opt))
    return all_values


@pytest.fixture(scope="module")
def schedulers() -> Any:
    pytest.importorskip("mmengine.optim", reason="mmengine-lite is not here", exc_type=ImportError)
    return sys.modules["mmengine.registry"].PARAM_SCHEDULERS


def mmengines(schedulers: Any, cfg: Any, metrics: list[float], opt: Any = None, param: str = "lr"):
    """With an evaluation after each epoch, as MMEngine's runner and hook do it."""
    opt = opt or optimizer(*LRS)
    scheduler = schedulers.build({**cfg, "by_epoch": True}, default_args={"optimizer": opt})
    all_values = []
    for metric in metrics:
        scheduler.step()
        scheduler.step({"val/loss": metric})
        all_values.append(values(opt, param))
    return all_values


def same(ours: list[Values], theirs: list[Values]) -> None:
    for i, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        assert our == pytest.approx(their, rel=1e-9, abs=1e-15), f"evaluation {i}"


@given(sequences, rules)
def test_reductions_are_torchs(metrics, rule):
    theirs = torchs(metrics, min_value=[0.001, 0.002], **rule)
    same(observed(plateau(min_value=[0.001, 0.002], **rule), metrics), theirs)


@given(sequences, rules, st.integers(0, 10), st.integers(1, 30))
def test_reductions_in_a_window_of_epochs_are_mmengines(schedulers, metrics, rule, begin, length):
    cfg = plateau(min_value=[0.001, 0.002], begin=begin, end=begin + length, by_epoch=True, **rule)
    same(observed(cfg, metrics, per=EPOCH), mmengines(schedulers, cfg, metrics))


@pytest.mark.parametrize(
    ("name", "param"),
    [("Momentum", "momentum"), ("ParamScheduler", "weight_decay")],
    ids=["momentum", "decay"],
)
def test_reductions_of_other_options_are_mmengines(name, param, schedulers):
    cfg = plateau(type=f"ReduceOnPlateau{name}", by_epoch=True, min_value=[0.01])
    if name == "ParamScheduler":
        cfg["param_name"] = param
    metrics = [1.0] * 12
    defaults = {"momentum": 0.9, "weight_decay": 0.1}
    opt = optimizer(**defaults)
    # MMEngine's own scheduler of momentum cannot take metrics.
    general = {**cfg, "type": "ReduceOnPlateauParamScheduler", "param_name": param}
    theirs = mmengines(schedulers, general, metrics, optimizer(**defaults), param)
    same(observed(cfg, metrics, opt, param, per=EPOCH), theirs)


@given(sequences, sequences, rules)
def test_a_resumed_run_lowers_as_an_uninterrupted_one(before, after, rule):
    cfg, both = plateau(min_value=0.001, **rule), before + after
    uninterrupted = observed(cfg, both)

    first = build_schedule(optimizer(*LRS), cfg)
    for i, metric in enumerate(before):
        first.apply(i)
        first.observe({"val/loss": metric})
    state = json.loads(json.dumps(first.state_dict()))

    opt = optimizer(*LRS)
    second = build_schedule(opt, cfg)
    second.load_state_dict(state)
    resumed = []
    for i, metric in enumerate(after, len(before)):
        second.apply(i)
        second.observe({"val/loss": metric})
        second.apply(i + 1)
        resumed.append(values(opt))
    assert resumed == uninterrupted[len(before) :]


def test_the_state_is_plain_data():
    schedule = build_schedule(optimizer(*LRS), [entry("ConstantLR"), plateau()])
    schedule.observe({"val/loss": torch.tensor(0.5)})
    state = schedule.state_dict()
    assert list(state) == ["lr by val/loss"]
    assert json.loads(json.dumps(state)) == state
    assert type(state["lr by val/loss"]["best"]) is float


def test_a_schedule_without_plateau_has_no_state():
    assert build_schedule(optimizer(), entry("ConstantLR")).state_dict() == {}


def test_a_state_of_an_entry_that_is_gone_is_left_alone():
    opt = optimizer()
    schedule = build_schedule(opt, plateau())
    schedule.load_state_dict({"param_scheduler.7": {"best": 1.0, "bad": 1, "cooldown": 0, "factors": {}}})
    schedule.apply(0)
    assert values(opt) == [0.1]


def test_a_group_that_is_new_since_the_state_was_saved_begins_at_its_base():
    cfg = plateau(patience=0)
    schedule = build_schedule(optimizer(0.1), cfg)
    for _ in range(2):
        schedule.observe({"val/loss": 1.0})
    opt = optimizer(0.1, 0.03)
    more = build_schedule(opt, cfg)
    more.load_state_dict(schedule.state_dict())
    more.apply(0)
    assert values(opt) == pytest.approx([0.05, 0.03])


@pytest.mark.parametrize("ask", ["observe", "check_metrics"])
def test_a_metric_that_evaluation_does_not_produce_is_an_error_that_names_those_there_are(ask):
    schedule = build_schedule(optimizer(), plateau(monitor="val/los"))
    with pytest.raises(ConfigError, match="evaluation does not produce this metric") as error:
        getattr(schedule, ask)({"val/loss": 1.0, "val/accuracy": 0.5})
    assert error.value.key == "param_scheduler.0.monitor"
    assert error.value.allowed == "val/loss, val/accuracy"
    assert error.value.suggestion == "val/loss"


def test_a_metric_that_is_missing_outside_the_window_is_an_error_all_the_same():
    schedule = build_schedule(optimizer(), plateau(begin=100))
    with pytest.raises(ConfigError, match="does not produce"):
        schedule.observe({"other": 1.0})


def test_min_value_scales_with_the_groups_own_base():
    after = observed(plateau(patience=0, min_value=0.02), [1.0] * 9, optimizer(0.1, 0.03, 0.0))
    assert after[-1] == pytest.approx([0.02, 0.006, 0.0])


def test_min_value_may_be_a_list_with_an_absolute_value_for_each_group():
    after = observed(plateau(patience=0, min_value=[0.05, 0.001]), [1.0] * 20)
    assert after[-1] == pytest.approx([0.05, 0.001])


def test_a_min_value_above_the_base_raises_nothing():
    after = observed(plateau(patience=0, min_value=[0.2, 0.2]), [1.0] * 5)
    assert after == [list(LRS)] * 5


def test_a_smaller_change_than_eps_is_left_out():
    after = observed(plateau(patience=0, eps=0.02), [1.0] * 9)
    assert after[-1] == pytest.approx([0.025, 0.03])


def test_evaluations_in_the_cooldown_do_not_count():
    after = [lr for (lr,) in observed(plateau(patience=0, cooldown=3), [1.0] * 10, optimizer())]
    #       best  lowered  3 in the cooldown    lowered  3 in the cooldown
    factors = [1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25, 0.125]
    assert after == pytest.approx([0.1 * factor for factor in factors])


def test_by_step_the_clock_of_the_window_is_the_number_of_finished_steps():
    # Evaluations after 10, 20, … steps; those after 20 and 30 count, the first of them as the best.
    after = observed(plateau(patience=0, begin=20, end=40), [1.0] * 6, optimizer(), per=10)
    assert [lr for (lr,) in after] == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.05, 0.05])


def test_by_epoch_the_clock_of_the_window_is_the_number_of_finished_epochs():
    cfg = plateau(patience=0, begin=2, end=4, by_epoch=True)
    after = observed(cfg, [1.0] * 6, optimizer(), per=EPOCH)
    assert [lr for (lr,) in after] == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.05, 0.05])


def test_what_is_lowered_is_the_base_of_all_other_entries():
    cfgs = [plateau(patience=0), entry("LinearLR", start_factor=0.1, end=11)]
    opt = optimizer()
    schedule = build_schedule(opt, cfgs)
    for _ in range(2):
        schedule.observe({"val/loss": 1.0})
    for step, (plain,) in enumerate(curve(cfgs[1], 15)):
        schedule.apply(step)
        assert values(opt) == pytest.approx([plain / 2])


def test_two_entries_that_watch_different_metrics_multiply():
    opt = optimizer()
    schedule = build_schedule(
        opt, [plateau(patience=0), plateau(monitor="val/acc", rule="greater", factor=0.1)]
    )
    for _ in range(3):
        schedule.observe({"val/loss": 1.0, "val/acc": 0.5})
    schedule.apply(0)
    assert values(opt) == pytest.approx([0.1 * 0.5 * 0.5 * 0.1])


def test_groups_restricts_what_is_lowered():
    after = observed(plateau(patience=0, groups=["g1"]), [1.0] * 2)
    assert after[-1] == pytest.approx([0.1, 0.015])


def test_a_first_metric_that_is_not_a_number_is_no_best():
    after = observed(plateau(), [math.nan, 3.0, 2.0, 1.0], optimizer())
    assert after == [[0.1]] * 4


@pytest.mark.parametrize(
    "wrong",
    [
        {"factor": 1.0},
        {"factor": -0.1},
        {"patience": -1},
        {"threshold": -1e-4},
        {"threshold": math.nan},
        {"rule": "lower"},
        {"threshold_rule": "relative"},
        {"cooldown": -1},
        {"min_value": -0.1},
        {"min_value": [0.1, math.inf]},
        {"min_value": [0.1]},
        {"eps": math.nan},
        {"monitor": ""},
    ],
    ids=str,
)
def test_a_wrong_argument_is_refused_by_name(wrong):
    (name,) = wrong
    with pytest.raises(ConfigError) as error:
        build_schedule(optimizer(*LRS), plateau(**wrong))
    assert error.value.key.startswith(f"param_scheduler.0.{name}")


def test_the_state_is_found_again_where_the_entry_stands_elsewhere_in_the_list():
    plateau = entry("ReduceOnPlateauLR", factor=0.5, patience=0)
    before = build_schedule(optimizer(), [entry("LinearLR", end=2), plateau])
    for loss in (1.0, 1.0):
        before.observe({"loss": loss})
    opt = optimizer()
    after = build_schedule(opt, [plateau])
    after.load_state_dict(before.state_dict())
    after.apply(5)
    assert opt.param_groups[0]["lr"] == pytest.approx(0.05)


def test_an_evaluation_after_the_last_step_counts_for_a_run_that_is_made_longer():
    opt = optimizer()
    schedule = build_schedule(opt, entry("ReduceOnPlateauLR", factor=0.5, patience=0), max_steps=8)
    for _ in range(2):
        schedule.apply(7)
        schedule.observe({"loss": 1.0})
    schedule.apply(8)
    assert opt.param_groups[0]["lr"] == pytest.approx(0.05)
