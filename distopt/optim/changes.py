"""A checkpoint's plan beside this run's: what is otherwise, parameter by parameter, and how it is said."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from distopt.optim.arguments import is_plain
from distopt.optim.census import Entry
from distopt.optim.plan import Group, Plan, free_name


class Change(NamedTuple):
    """An option that a parameter had otherwise."""

    fqn: str
    option: str
    old: Any
    new: Any
    rule: str
    """What decides now: `rule norm`, or `base value`."""


@dataclass(frozen=True)
class Difference:
    """Between the groups of a checkpoint and those of this run."""

    changes: tuple[Change, ...] = ()
    stepped_by: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """FQN → the type of its optimizer before, and now, where it is another."""
    thawed: tuple[str, ...] = ()
    """What is trained, and was frozen."""
    frozen: tuple[str, ...] = ()
    """What is frozen, and was trained."""
    untied: tuple[str, ...] = ()
    """What was another parameter's alias, and is a parameter of its own."""
    own: Mapping[str, Any] = field(default_factory=dict)
    """The optimizer's own hyper-parameters in the checkpoint, where they were other ones."""

    @property
    def lost(self) -> list[str]:
        """Sentences on optimizer state that has no use any more."""
        sentences = [
            f"the optimizer of {_parameters(count)} was {was}, is {now}: its state starts afresh"
            for (was, now), count in Counter(self.stepped_by.values()).items()
        ]
        if self.thawed:
            count = _parameters(len(self.thawed))
            sentences.append(f"{count} frozen before, trained now: the optimizer's state starts afresh")
        if self.untied:
            count = _parameters(len(self.untied))
            sentences.append(f"{count} tied before, single now: the optimizer's state starts afresh")
        if self.frozen:
            count = _parameters(len(self.frozen))
            sentences.append(f"{count} trained before, frozen now: the optimizer's state is dropped")
        return sentences


def compare(saved: Mapping[str, Any], plan: Plan, renamed: Callable[[str], str] = str) -> Difference:
    """What `plan` gives to the parameters that both have, beside what they were trained with before.

    Args:
        saved: A checkpoint's plan.json.
        plan: Of this run.
        renamed: The name in the checkpoint → the name now.
    """
    groups = {
        renamed(name): (group, renamed(param["fqn"]))
        for group in saved.get("groups", [])
        for param in group["params"]
        for name in (param["fqn"], *param["aliases"])
    }
    were_frozen = {renamed(name) for name in saved.get("frozen", [])}
    changes: list[Change] = []
    stepped_by: dict[str, tuple[str, str]] = {}
    thawed: list[str] = []
    untied: list[str] = []
    for group in plan.groups:
        for entry in group.entries:
            known = (entry.fqn, *entry.aliases)
            name = next((name for name in known if name in groups), None)
            if name is None:
                thawed += [entry.fqn] * (not were_frozen.isdisjoint(known))
                continue
            before, owner = groups[name]
            untied += [entry.fqn] * (owner not in known)
            was = _short(before.get("optimizer", saved["optimizer"]))
            if was != _short(group.optimizer):
                stepped_by[entry.fqn] = was, _short(group.optimizer)
            changes += _changes(entry.fqn, before, group)
    return Difference(
        tuple(changes),
        stepped_by,
        tuple(thawed),
        tuple(name for name in plan.frozen if name in groups),
        tuple(untied),
        _own(saved, plan),
    )


def described(changes: Iterable[Change], *, kept: bool = False) -> list[str]:
    """`13 parameters: weight_decay 0.1 → 0.0 (rule norm)`: equal changes in one sentence.

    Args:
        changes: What to describe.
        kept: Whether it is the old values that are used.
    """
    alike = Counter((c.option, _shown(c.old), _shown(c.new), c.rule) for c in changes)
    sentence = "{}: {} {} kept from the checkpoint, not {} ({})" if kept else "{}: {} {} → {} ({})"
    return [sentence.format(_parameters(count), *change) for change, count in alike.items()]


def keep(plan: Plan, changes: Sequence[Change]) -> Plan:
    """`plan` with the old values of `changes`; a group whose parameters had different ones is split."""
    old: dict[str, dict[str, Any]] = {}
    for change in changes:
        old.setdefault(change.fqn, {})[change.option] = change.old
    taken = {"all", *(group.name for group in plan.groups)}
    groups = []
    for group in plan.groups:
        alike: dict[str, list[Entry]] = {}
        for entry in group.entries:
            alike.setdefault(repr(old.get(entry.fqn, {})), []).append(entry)
        for number, entries in enumerate(alike.values()):
            name = free_name(group.name, taken) if number else group.name
            taken.add(name)
            values = old.get(entries[0].fqn, {})
            why = {option: f"{_shown(value)} (resume_groups: checkpoint)" for option, value in values.items()}
            groups.append(
                replace(
                    group,
                    name=name,
                    options={**group.options, **values},
                    why={**group.why, **why},
                    entries=tuple(entries),
                )
            )
    return replace(plan, groups=tuple(groups))


def _changes(fqn: str, before: Mapping[str, Any], group: Group) -> Iterator[Change]:
    was = {**before.get("defaults", {}), **before["options"]}
    now = {**group.defaults, **group.options}
    rules = " + ".join(group.rules)
    for option, new in now.items():
        if option in was and is_plain(new) and not _same(was[option], new):
            decided = rules and (option in group.why or group.defaults.get(option) != new)
            yield Change(fqn, option, was[option], new, f"rule {rules}" if decided else "base value")


def _own(saved: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """What the section's optimizer has in the checkpoint, where it is the same and has it otherwise."""
    before: Mapping[str, Any] = next(
        (group for group in saved.get("groups", []) if not group.get("part")), {}
    )
    now = next((group for group in plan.groups if group.part is None), None)
    if now is None or _short(before.get("optimizer", "")) != _short(now.optimizer):
        return {}
    own = before.get("defaults", {})
    return {name: own[name] for name, value in now.defaults.items() if name in own and own[name] != value}


def _same(old: Any, new: Any) -> bool:
    """Numbers but for what another order of multiplications makes of them; sequences element by element."""
    if isinstance(old, list | tuple) and isinstance(new, list | tuple):
        return len(old) == len(new) and all(map(_same, old, new))
    if isinstance(old, int | float) and isinstance(new, int | float):
        return math.isclose(old, new, rel_tol=1e-9)
    return bool(old == new)


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_shown, value))}]"
    return repr(float(f"{value:.9g}")) if isinstance(value, float) else str(value)


def _parameters(count: int) -> str:
    return "1 parameter" if count == 1 else f"{count} parameters"


def _short(optimizer_type: str) -> str:
    return optimizer_type.removeprefix("torch.optim.")
