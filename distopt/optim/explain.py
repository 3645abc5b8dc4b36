"""Explaining a verdict: which rules are for a parameter, which of them decide, why the others do not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from distopt.errors import ConfigError, listed
from distopt.optim.census import Entry, Place
from distopt.optim.decide import Decisions
from distopt.optim.near import near
from distopt.optim.plan import Group
from distopt.optim.rules import DefaultOptimWrapperConstructor


class Contender(NamedTuple):
    """A rule that is for a parameter, and what becomes of it."""

    outcome: Literal["decides", "loses", "set aside", "not given"]
    rule: str
    """`norm_decay_mult`, `custom_keys.head`; or what a constructor calls a rule of its own."""
    key: str
    """Where it stands in the config, dotted: `optimizer.paramwise_cfg.norm_decay_mult`."""
    value: Any = None
    reason: str = ""
    """Why it does not decide."""


def find(decisions: Decisions, groups: Sequence[Group], name: str) -> tuple[Entry | None, Group | None]:
    """The parameter that has `name` among its names, and the group that is called so; at least one.

    Raises:
        ConfigError: There is neither, with the nearest names that there are.
    """
    of_groups = {group.name: group for group in groups}
    entries = {place.fqn: entry for entry, place in decisions.census.places()}
    if name not in entries and name not in of_groups:
        known = [*of_groups, *entries]
        similar = [other for other in known if name in other] or near(name, known, most=3)
        raise ConfigError(
            "",
            "no parameter and no group has this name",
            given=name,
            allowed="what `distopt groups --params` lists",
            suggestion=listed(similar, most=3) or None,
        )
    return entries.get(name), of_groups.get(name)


def contenders(decisions: Decisions, entry: Entry, place: Place) -> list[Contender]:
    """The rules that are for a parameter under one of its names, in the order in which they are asked.

    Of rules that a constructor adds, only those are known that decide.
    """
    constructor = decisions.constructor
    verdict = decisions.verdict(entry, place)
    found: list[Contender] = []
    if isinstance(constructor, DefaultOptimWrapperConstructor):
        keys = constructor.matching_keys(place)
        found = [
            *_custom_keys(constructor, keys),
            *_passed_over(constructor, place),
            *_multipliers(constructor, entry, place, keys),
        ]
    known = {verdict.key, *(contender.rule.rsplit("_", 2)[0] for contender in found)}
    added = [rule for rule in verdict.rules if rule not in known]
    return [*found, *(Contender("decides", rule, "optimizer.constructor") for rule in added)]


def _custom_keys(rules: DefaultOptimWrapperConstructor, keys: list[str]) -> Iterator[Contender]:
    for key in keys:
        rule, winner = f"custom_keys.{key}", keys[0]
        at = f"optimizer.paramwise_cfg.{rule}"
        if key == winner:
            yield Contender("decides", rule, at, rules.custom_keys[key])
        else:
            ranks = "is longer" if len(key) < len(winner) else "comes first in the alphabet"
            reason = f"custom_keys.{winner} matches too, and {ranks}"
            yield Contender("loses", rule, at, rules.custom_keys[key], reason)


def _passed_over(rules: DefaultOptimWrapperConstructor, place: Place) -> Iterator[Contender]:
    for key in rules.passed_over(place):
        rule, reason = f"custom_keys.{key}", "it is for hidden matrices only (hidden_only)"
        at = f"optimizer.paramwise_cfg.{rule}"
        yield Contender("set aside", rule, at, rules.custom_keys[key], reason)


def _multipliers(
    rules: DefaultOptimWrapperConstructor, entry: Entry, place: Place, keys: list[str]
) -> Iterator[Contender]:
    sets = rules.custom_keys[keys[0]] if keys else {}
    winners: dict[str, str] = {}
    for rule in (rule for rule, is_for in rules.applies(entry, place).items() if is_for):
        at, value = f"optimizer.paramwise_cfg.{rule}", rules.multipliers.get(rule)
        option = "lr" if rule.endswith("_lr_mult") else "weight_decay"
        if value is None:
            yield Contender("not given", rule, at)
        elif keys and not rules.combines:
            reason = "a custom key replaces all other rules; with custom_keys_mode: combine they multiply"
            yield Contender("set aside", rule, at, value, reason)
        elif option in winners:
            yield Contender("loses", rule, at, value, f"{winners[option]} is asked first")
        elif option in sets:
            yield Contender("set aside", rule, at, value, f"custom_keys.{keys[0]} sets {option} itself")
        else:
            winners[option] = rule
            yield Contender("decides", rule, at, value)
