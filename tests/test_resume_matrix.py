"""Resuming under other groups and optimizers: state goes on by FQN, values are the config's, all is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from distopt import ConfigError, Runner, load_config
from tests.kit import run_distributed
from tests.resumes import ADAMW, Net, Spy, adamw, continued, start, twice, write
from tests.runs import rows

ALL = {f"{module}.{name}" for module in ("first", "norm", "last") for name in ("weight", "bias")}
NORM = {"norm.weight", "norm.bias"}
LAST = {"last.weight", "last.bias"}


def used(spy: Spy, option: str) -> dict[str, Any]:
    """FQN → the value at the first step of a start; a tuple as a list."""
    values = {name: options[option] for name, options in spy.used.items()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


@pytest.mark.parametrize(
    ("option", "old", "new", "said"),
    [
        ("lr", 0.01, 0.002, "6 parameters: lr 0.01 → 0.002 (base value)"),
        ("weight_decay", 0.1, 0.05, "6 parameters: weight_decay 0.1 → 0.05 (base value)"),
        ("betas", [0.9, 0.999], [0.9, 0.95], "6 parameters: betas [0.9, 0.999] → [0.9, 0.95] (base value)"),
        ("eps", 1e-8, 1e-6, "6 parameters: eps 1e-08 → 1e-06 (base value)"),
    ],
)
def test_a_changed_value_is_used_at_the_next_step_and_said(tmp_path, option, old, new, said):
    starts = twice(tmp_path, adamw(**{option: old}), adamw(**{option: new}))
    assert continued(starts) == ALL
    assert used(starts.second, option) == dict.fromkeys(ALL, new)
    assert starts.told == [said]


def test_split_groups_go_on_with_the_values_of_the_rule_that_split_them(tmp_path):
    starts = twice(tmp_path, adamw(), adamw(norm_decay_mult=0, bias_lr_mult=2))
    assert continued(starts) == ALL
    assert used(starts.second, "weight_decay") == dict.fromkeys(ALL, 0.1) | dict.fromkeys(NORM, 0.0)
    biases = dict.fromkeys(("first.bias", "last.bias"), 0.02)
    assert used(starts.second, "lr") == dict.fromkeys(ALL, 0.01) | biases
    assert starts.told == [
        "2 parameters: lr 0.01 → 0.02 (rule bias)",
        "2 parameters: weight_decay 0.1 → 0.0 (rule norm)",
    ]


def test_merged_groups_go_on_with_the_base_values(tmp_path):
    starts = twice(tmp_path, adamw({"last": {"lr_mult": 3}}, norm_decay_mult=0), adamw())
    assert continued(starts) == ALL
    assert set(used(starts.second, "name").values()) == {"default"}
    assert used(starts.second, "lr") == dict.fromkeys(ALL, 0.01)
    assert starts.told == [
        "2 parameters: weight_decay 0.0 → 0.1 (base value)",
        "2 parameters: lr 0.03 → 0.01 (base value)",
    ]


def test_a_renamed_group_goes_on_and_nothing_is_said(tmp_path):
    key = {"lr_mult": 0.5}
    starts = twice(tmp_path, adamw({"last": key}), adamw({"last": {**key, "name": "classifier"}}))
    assert continued(starts) == ALL
    assert {starts.second.used[name]["name"] for name in LAST} == {"classifier"}
    assert starts.told == []


def test_groups_in_another_order_go_on(tmp_path):
    """The groups stand in the order of the walk: the first parameter moves from one to the other."""
    starts = twice(tmp_path, adamw({"first": {"lr_mult": 0.5}}), adamw({"last": {"lr_mult": 0.5}}))
    assert continued(starts) == ALL
    assert used(starts.second, "lr") == dict.fromkeys(ALL, 0.01) | dict.fromkeys(LAST, 0.005)


def test_what_is_frozen_now_loses_its_state_and_that_is_said(tmp_path):
    starts = twice(tmp_path, {}, {"net": {"frozen": "last"}})
    assert continued(starts) == starts.second.found.keys() == ALL - LAST
    before, after = starts.first.left_weights, starts.second.left_weights
    assert all(torch.equal(after[name], before[name]) for name in LAST)
    assert starts.told == ["2 parameters trained before, frozen now: the optimizer's state is dropped"]


def test_what_is_trained_only_now_starts_afresh_and_that_is_said(tmp_path):
    starts = twice(tmp_path, {"net": {"frozen": "last"}}, {})
    assert continued(starts) == starts.second.found.keys() == ALL - LAST
    assert {name: state["step"] for name, state in starts.second.left.items()} == (
        dict.fromkeys(ALL, 4) | dict.fromkeys(LAST, 1)
    )
    assert starts.told == ["2 parameters frozen before, trained now: the optimizer's state starts afresh"]


def test_another_optimizer_for_some_starts_them_afresh_and_that_is_said(tmp_path):
    sgd = {"last": {"type": "SGD", "lr": 0.05, "momentum": 0.8, "weight_decay": 0.1}}
    starts = twice(tmp_path, adamw(), adamw(sgd))
    assert continued(starts) == starts.second.found.keys() == ALL - LAST
    assert {name: starts.second.left[name].keys() for name in LAST} == dict.fromkeys(
        LAST, {"momentum_buffer": 0}.keys()
    )
    assert starts.told == [
        "2 parameters: lr 0.01 → 0.05 (rule last)",
        "the optimizer of 2 parameters was AdamW, is SGD: its state starts afresh",
    ]


@pytest.mark.parametrize(("old", "new"), [("fused", "foreach"), ("foreach", "fused")])
def test_another_implementation_of_an_optimizer_goes_on_and_nothing_is_said(tmp_path, old, new):
    starts = twice(tmp_path, adamw(**{old: True}), adamw(**{new: True}))
    assert continued(starts) == ALL
    assert starts.told == []


def test_momentum_of_sgd_is_the_configs(tmp_path):
    def sgd(momentum: float) -> dict[str, Any]:
        return {"optimizer": {"type": "SGD", "lr": 0.01, "momentum": momentum}}

    starts = twice(tmp_path, sgd(0.9), sgd(0.5))
    left, found = starts.first.left, starts.second.found
    assert all(torch.equal(found[n]["momentum_buffer"], left[n]["momentum_buffer"]) for n in ALL)
    assert used(starts.second, "momentum") == dict.fromkeys(ALL, 0.5)
    assert starts.told == ["6 parameters: momentum 0.9 → 0.5 (base value)"]


def test_what_differs_are_base_values_whatever_the_schedule_makes_of_them(tmp_path):
    schedule = {"type": "ConstantLR", "by_epoch": False, "factor": 0.5, "end": 8}
    halved = {"param_scheduler": [schedule], **adamw(lr=0.005)}
    starts = twice(tmp_path, {"param_scheduler": [schedule], **adamw()}, halved)
    assert starts.told == ["6 parameters: lr 0.01 → 0.005 (base value)"]
    assert used(starts.second, "lr") == dict.fromkeys(ALL, 0.0025)


def test_the_same_value_by_another_arithmetic_is_no_difference(tmp_path):
    starts = twice(tmp_path, adamw({"last": {"lr_mult": 0.3}}), adamw({"last": {"lr": 0.003}}))
    assert starts.told == []


def test_what_is_said_is_on_the_console_and_in_the_log(tmp_path, capsys):
    twice(tmp_path, adamw(), adamw(norm_decay_mult=0))
    said = "2 parameters: weight_decay 0.1 → 0.0 (rule norm)"
    assert f"warning: {said}\n" in capsys.readouterr().out
    assert said in (tmp_path / "run" / "logs" / "rank0.log").read_text()


def test_the_policy_checkpoint_keeps_what_it_was_trained_with(tmp_path):
    changed = adamw(norm_decay_mult=0, lr=0.002, betas=[0.5, 0.9])
    starts = twice(tmp_path, adamw(), {"resume_groups": "checkpoint", **changed})
    assert continued(starts) == ALL
    assert used(starts.second, "lr") == dict.fromkeys(ALL, 0.01)
    assert used(starts.second, "weight_decay") == dict.fromkeys(ALL, 0.1)
    assert used(starts.second, "betas") == {name: [0.9, 0.999] for name in ALL}
    assert starts.told == [
        "6 parameters: lr 0.01 kept from the checkpoint, not 0.002 (base value)",
        "6 parameters: betas [0.9, 0.999] kept from the checkpoint, not [0.5, 0.9] (base value)",
        "2 parameters: weight_decay 0.1 kept from the checkpoint, not 0.0 (rule norm)",
    ]


def test_values_that_are_kept_are_base_values_for_the_schedule(tmp_path):
    """An absolute `eta_min` too is relative to the lr that is kept. The cosine is at a quarter."""
    schedule = {"type": "CosineAnnealingLR", "by_epoch": False, "eta_min": 0.001, "end": 3}
    kept = {"resume_groups": "checkpoint", **adamw(lr=0.5)}
    starts = twice(tmp_path, adamw(), {"param_scheduler": [schedule], **kept})
    assert used(starts.second, "lr") == pytest.approx(dict.fromkeys(ALL, 0.001 + 0.009 / 4))


def test_a_group_whose_parameters_had_different_values_is_split(tmp_path):
    kept = {"resume_groups": "checkpoint", **adamw(bias_decay_mult=0)}
    starts = twice(tmp_path, adamw({"last": {"lr_mult": 3}}), kept)
    assert continued(starts) == ALL
    assert used(starts.second, "lr") == pytest.approx(dict.fromkeys(ALL, 0.01) | dict.fromkeys(LAST, 0.03))
    assert starts.second.used["first.weight"]["name"] == "default"
    assert starts.second.used["last.weight"]["name"] == "default.2"
    assert rows(tmp_path / "run")[-1]["lr"].keys() >= {"default", "default.2"}


def test_parameters_that_are_new_have_the_values_of_the_config_beside_those_that_are_kept(tmp_path):
    kept = {"resume_groups": "checkpoint", "resume_strict": False, **adamw(lr=0.5, betas=[0.5, 0.9])}
    starts = twice(tmp_path, adamw(), {"net": {"extra": True}, **kept})
    new = dict.fromkeys(("extra.weight", "extra.bias"), 0.5)
    assert used(starts.second, "lr") == dict.fromkeys(ALL, 0.01) | new
    assert used(starts.second, "betas")["extra.weight"] == [0.5, 0.9]


def test_a_kept_run_that_is_submitted_again_goes_on_keeping(tmp_path):
    kept = {"resume_groups": "checkpoint", **adamw(bias_decay_mult=0)}
    starts = twice(tmp_path, adamw({"last": {"lr_mult": 3}}), kept)
    again, _ = start(tmp_path, max_steps=5, **kept)
    assert used(again, "lr") == used(starts.second, "lr")
    assert used(again, "name") == used(starts.second, "name")


@pytest.mark.parametrize(
    ("changes", "by"),
    [
        ({"clip_grad": {"max_norm": 1.0, "per_group": True}}, "clip_grad.per_group"),
        (
            {"param_scheduler": [{"type": "ConstantLR", "by_epoch": False, "groups": ["default"]}]},
            "param_scheduler.0.groups",
        ),
    ],
)
def test_a_split_that_what_goes_by_groups_does_not_know_is_refused(tmp_path, changes, by):
    start(tmp_path, **adamw({"last": {"lr_mult": 3}}))
    with pytest.raises(ConfigError, match=rf"default\.2.*which {by} does not know") as caught:
        start(tmp_path, max_steps=4, resume_groups="checkpoint", **changes)
    assert caught.value.key == "resume_groups"


def test_values_of_another_optimizer_are_not_kept(tmp_path):
    sgd = adamw({"last": {"type": "SGD", "lr": 0.05}})
    starts = twice(tmp_path, adamw(lr=0.02), {"resume_groups": "checkpoint", **sgd})
    assert used(starts.second, "lr") == dict.fromkeys(ALL, 0.02) | dict.fromkeys(LAST, 0.05)
    assert "2 parameters: lr 0.02 → 0.05 (rule last)" in starts.told


def test_values_of_a_part_with_an_optimizer_of_its_own_are_kept(tmp_path):
    """Of those that its entry gives, and of those that are its optimizer's defaults."""
    part = {"type": "SGD", "lr": 0.05, "momentum": 0.8}
    kept = adamw({"last": {**part, "momentum": 0.5, "dampening": 0.5}})
    starts = twice(tmp_path, adamw({"last": part}), {"resume_groups": "checkpoint", **kept})
    assert {starts.second.used[name]["momentum"] for name in LAST} == {0.8}
    assert {starts.second.used[name]["dampening"] for name in LAST} == {0}


class Warming(torch.optim.SGD):
    """Has an argument that is the same for all groups."""

    def __init__(self, params: Any, lr: float = 0.1, warm: int = 3) -> None:
        super().__init__(params, lr=lr)
        self.warm = warm


def test_what_is_no_option_of_single_groups_cannot_be_kept(tmp_path):
    def warming(warm: int) -> dict[str, Any]:
        return {"optimizer": {"type": f"{__name__}:Warming", "lr": 0.1, "warm": warm}}

    start(tmp_path, **warming(3))
    with pytest.raises(ConfigError, match="groups of this optimizer have no warm of their own") as caught:
        start(tmp_path, max_steps=4, resume_groups="checkpoint", **warming(5))
    assert caught.value.allowed == "config, with warm: 3"


def _build(lr: float) -> Any:
    return lambda model: torch.optim.AdamW(model.parameters(), lr=lr)


def test_an_optimizer_that_is_built_already_cannot_keep_other_values(tmp_path):
    Runner(load_config(write(tmp_path)), optimizer=_build(0.01)).train()
    again = load_config(write(tmp_path, max_steps=4, resume_groups="checkpoint"))
    with pytest.raises(ConfigError, match="resume_groups: AdamW is built already"):
        Runner(again, optimizer=_build(0.02)).train()
    Runner(again, optimizer=_build(0.01)).train()


def test_the_values_of_an_optimizer_that_is_built_already_are_compared(tmp_path):
    Runner(load_config(write(tmp_path)), optimizer=_build(0.01)).train()
    runner = Runner(load_config(write(tmp_path, max_steps=4)), optimizer=_build(0.02))
    runner.train()
    assert runner.inheritance.values == ("6 parameters: lr 0.01 → 0.02 (base value)",)


def contents(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (adamw(norm_decay_mult=0), "2 parameters: weight_decay 0.1 → 0.0 (rule norm)"),
        ({"optimizer": {**ADAMW, "type": "Adam"}}, "6 parameters was AdamW, is Adam"),
        ({"net": {"frozen": "last"}}, "2 parameters trained before, frozen now"),
    ],
)
def test_the_policy_error_refuses_any_difference_and_writes_nothing(tmp_path, changes, said):
    start(tmp_path)
    before = contents(tmp_path / "run")
    with pytest.raises(ConfigError, match="resume_groups") as caught:
        start(tmp_path, max_steps=4, resume_groups="error", **changes)
    assert said in str(caught.value)
    assert contents(tmp_path / "run") == before


def test_the_policy_error_lets_the_same_groups_go_on(tmp_path):
    starts = twice(tmp_path, adamw(), {"resume_groups": "error", **adamw(fused=True)})
    assert continued(starts) == ALL


def _changed_groups_under_fsdp(folder: Path) -> tuple[set[str], dict[str, Any], list[str]]:
    changed = adamw({"last": {"type": "SGD", "lr": 0.05}}, norm_decay_mult=0, foreach=True)
    starts = twice(folder, {"strategy": "fsdp", **adamw()}, {"strategy": "fsdp", **changed})
    return continued(starts), used(starts.second, "weight_decay"), starts.told


def test_changed_groups_and_optimizers_go_on_under_fsdp(tmp_path):
    for same, decay, told in run_distributed(_changed_groups_under_fsdp, tmp_path):
        assert same == ALL - LAST
        assert {name: decay[name] for name in NORM} == dict.fromkeys(NORM, 0.0)
        assert "the optimizer of 2 parameters was AdamW, is SGD: its state starts afresh" in told


def _kept_under_fsdp(folder: Path) -> tuple[set[str], dict[str, Any]]:
    kept = {"strategy": "fsdp", "resume_groups": "checkpoint", **adamw(norm_decay_mult=0, lr=0.5)}
    starts = twice(folder, {"strategy": "fsdp", **adamw()}, kept)
    return continued(starts), used(starts.second, "lr")


def test_the_values_of_a_checkpoint_are_kept_under_fsdp(tmp_path):
    for same, lr in run_distributed(_kept_under_fsdp, tmp_path):
        assert same == ALL
        assert lr == dict.fromkeys(ALL, 0.01)


def test_all_parameters_of_the_small_model_are_in_the_matrix():
    assert {name for name, _ in Net().named_parameters()} == ALL
