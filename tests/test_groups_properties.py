"""What holds for the groups of any model, with any rules, in any wrappers of one process."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from functools import partial
from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from distopt import ConfigError, build_optimizer, make_plan, names
from distopt.config import OptimizerConfig, validate
from distopt.optim import Plan
from distopt.optim.decide import decide
from tests.trees import MULTIPLIERS, Case, cases, custom_keys, examples, factors

pytestmark = pytest.mark.slow
any_case = cases({"custom_keys_mode": st.sampled_from(["override", "combine"])})
few = examples(60)


def section(case: Case, **paramwise: Any) -> dict[str, Any]:
    """The case's optimizer section with everything that its model may need, and more rules."""
    rules = {**case.config["paramwise_cfg"], "bypass_duplicate": True, **paramwise}
    return {"lr": 0.1, "weight_decay": 0.01, **case.config, "unmatched_keys": "warn", "paramwise_cfg": rules}


def keys(case: Case) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = case.config["paramwise_cfg"].get("custom_keys", {})
    return found


def trainable(model: nn.Module) -> list[int]:
    return sorted(id(parameter) for parameter in model.parameters() if parameter.requires_grad)


def owned(optimizer: torch.optim.Optimizer) -> list[int]:
    return sorted(id(parameter) for group in optimizer.param_groups for parameter in group["params"])


@few
@given(any_case)
def test_every_trainable_parameter_is_in_one_group_and_no_frozen_one_is_in_any(case: Case) -> None:
    model = case.tree.build()
    assert owned(build_optimizer(model, section(case))) == trainable(model)


@few
@given(any_case)
def test_merging_keeps_what_was_decided_for_each_parameter(case: Case) -> None:
    model = case.tree.build()
    decisions = decide(model, validate(OptimizerConfig, section(case), key="optimizer"))
    groups = {
        fqn: group
        for group in build_optimizer(model, section(case)).param_groups
        for fqn in group["param_names"]
    }
    for entry in decisions.census.entries:
        if entry.requires_grad:
            verdict = decisions.constructor.decide(entry, entry.places[0])
            expected = {**decisions.defaults, "momentum": 0.8, **verdict.options}
            assert {option: groups[entry.fqn][option] for option in expected} == expected


@few
@given(any_case)
def test_no_two_groups_have_the_same_rules_and_options(case: Case) -> None:
    groups = make_plan(case.tree.build(), section(case)).groups
    pairs = combinations(groups, 2)
    assert not [(a.name, b.name) for a, b in pairs if (a.rules, a.options) == (b.rules, b.options)]


@few
@given(any_case, st.data())
def test_the_order_of_custom_keys_does_not_matter(case: Case, data: st.DataObject) -> None:
    order = data.draw(st.permutations(list(keys(case))))
    shuffled = section(case, custom_keys={key: keys(case)[key] for key in order})
    plan, other = (make_plan(case.tree.build(), cfg) for cfg in (section(case), shuffled))
    assert (plan, plan.digest) == (other, other.digest)


own_names = st.sampled_from(["all", "default", "norm", "bias", "norm.2", "."]) | st.text(min_size=1)


@few
@given(any_case, st.lists(own_names, min_size=4, max_size=4))
def test_names_are_unique_and_fit_for_tags_and_files(case: Case, wanted: list[str]) -> None:
    named = {key: {**keys(case)[key], "name": name} for key, name in zip(keys(case), wanted, strict=False)}
    plan = make_plan(case.tree.build(), section(case, custom_keys=named))
    found = [group.name for group in plan.groups]
    assert len(set(found)) == len(found)
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+", name) for name in found)
    assert "all" not in found


def by_parameter(plan: Plan) -> dict[str, tuple[str, Mapping[str, Any]]]:
    return {fqn: (group.name, group.options) for group in plan.groups for fqn in group.param_names}


@few
@given(any_case)
def test_a_key_that_matches_nothing_changes_nothing(case: Case) -> None:
    more = section(case, custom_keys={"no such name": {"lr_mult": 7}, **keys(case)})
    assert make_plan(case.tree.build(), more) == make_plan(case.tree.build(), section(case))


@few
@given(any_case, st.data())
def test_a_further_rule_touches_only_what_it_decides(case: Case, data: st.DataObject) -> None:
    """Groups of the others keep their names, too, where no two keys want the same one."""
    named = {key: {**entry, "name": f"key{i}"} for i, (key, entry) in enumerate(keys(case).items())}
    before = make_plan(case.tree.build(), section(case, custom_keys=named))
    more: dict[str, Any]
    if data.draw(st.booleans(), label="a key"):
        further = data.draw(custom_keys(case.tree))
        assume(not further.keys() & named.keys())
        rules, more = set(further), {"custom_keys": {**named, **further}}
        for i, entry in enumerate(further.values()):
            entry["name"] = f"further{i}"
    else:
        name = data.draw(st.sampled_from(MULTIPLIERS))
        assume(case.config["paramwise_cfg"].get(name) is None)
        more = {"custom_keys": named}
        rules, more[name] = {name.rsplit("_", 2)[0]}, data.draw(factors)
    after = make_plan(case.tree.build(), section(case, **more))
    others = {fqn for group in after.groups if not rules & set(group.rules) for fqn in group.param_names}
    was = by_parameter(before)
    assert {fqn: now for fqn, now in by_parameter(after).items() if fqn in others} == {
        fqn: was[fqn] for fqn in was if fqn in others
    }


def compile_in_place(module: nn.Module) -> nn.Module:
    module.compile(backend="eager")
    return module


WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "torch.compile": partial(torch.compile, backend="eager"),
    "Module.compile": compile_in_place,
    "checkpoint_wrapper": checkpoint_wrapper,
}
wrappings = st.lists(
    st.tuples(st.sampled_from(list(WRAPPERS)), st.just(range(100)) | st.sets(st.integers(0, 20))),
    max_size=3,
    unique_by=lambda step: step[0],  # torch refuses to compile what is compiled
)
"""Which wrapper comes around which modules, in which order: 0 is the model itself."""


def wrapped(model: nn.Module, steps: list[tuple[str, Collection[int]]]) -> nn.Module:
    for name, which in steps:
        places = [
            (module, child, inner)
            for module in model.modules()
            for child, inner in module._modules.items()
            if inner is not None and child not in names.WRAPPED_CHILD
        ]
        wrap = WRAPPERS[name]
        for i, (module, child, inner) in enumerate(places, 1):
            if i in which:
                module._modules[child] = wrap(inner)
        if 0 in which:
            model = wrap(model)
    return model


def outcome(model: nn.Module, cfg: Mapping[str, Any]) -> Plan | str:
    try:
        return make_plan(model, cfg)
    except ConfigError as error:
        return str(error)


@examples(200)
@given(any_case, wrappings)
def test_wrappers_change_neither_the_plan_nor_who_owns_what(case: Case, steps: list[Any]) -> None:
    cfg = section(case)
    plan = make_plan(case.tree.build(), cfg)
    model = wrapped(case.tree.build(), steps)
    again = make_plan(model, cfg)
    assert (again, again.digest, again.warnings) == (plan, plan.digest, plan.warnings)
    assert owned(build_optimizer(model, cfg, plan)) == trainable(model)
    on_meta = wrapped(case.tree.build("meta"), steps)
    assert make_plan(on_meta, cfg) == plan


@few
@given(any_case, wrappings)
def test_wrappers_change_no_error_either(case: Case, steps: list[Any]) -> None:
    cfg = {**section(case, bypass_duplicate=False), "unmatched_keys": "error"}
    assert outcome(wrapped(case.tree.build(), steps), cfg) == outcome(case.tree.build(), cfg)
