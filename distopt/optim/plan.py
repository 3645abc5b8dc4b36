"""The plan: every group of a model with its name, decided before anything is wrapped."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from distopt.optim.census import Entry
from distopt.optim.verdict import Verdict


@dataclass(frozen=True)
class Group:
    """Parameters with the same options, decided by the same rules."""

    name: str
    rules: tuple[str, ...]
    options: Mapping[str, Any]
    """What the optimizer is given for this group; lr and weight_decay always, where it has them."""
    why: Mapping[str, str]
    entries: tuple[Entry, ...]
    optimizer: str
    """The type of what steps it."""
    part: str | None = None
    """See `Verdict.part`."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """The optimizer's own hyper-parameters, which it has where `options` say nothing else."""

    @property
    def param_names(self) -> list[str]:
        return [entry.fqn for entry in self.entries]

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "optimizer": self.optimizer,
            "part": self.part,
            "rules": list(self.rules),
            "options": dict(self.options),
            "defaults": dict(self.defaults),
            "why": dict(self.why),
            "params": [
                {
                    "fqn": entry.fqn,
                    "aliases": list(entry.aliases),
                    "shape": list(entry.shape),
                    "numel": entry.numel,
                }
                for entry in self.entries
            ],
        }


@dataclass(frozen=True)
class Plan:
    """All groups of a model. The same model and config give the same plan, before and after wrapping."""

    optimizer: str
    groups: tuple[Group, ...]
    frozen: tuple[str, ...] = ()
    """FQNs of the parameters that are in no group because they do not require a gradient."""
    frozen_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Of those: ranks that differ in them do not have the same model."""
    ties: tuple[tuple[str, ...], ...] = ()
    """The names of each shared parameter, frozen ones too: the owner's first."""
    warnings: tuple[str, ...] = field(default=(), compare=False)
    """What is probably not meant."""

    @property
    def optimizers(self) -> dict[str, str]:
        """FQN → the type of the optimizer that steps the parameter."""
        return {fqn: group.optimizer for group in self.groups for fqn in group.param_names}

    @cached_property
    def digest(self) -> str:
        """Identifies the plan: equal on every rank, or the ranks do not train the same thing."""
        content = json.dumps(self._content, sort_keys=True, default=repr)
        return hashlib.sha256(content.encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as stored in plan.json."""
        return {"digest": self.digest, **self._content, "ties": [list(names) for names in self.ties]}

    def to_json(self) -> str:
        """The text of plan.json."""
        return json.dumps(self.to_dict(), indent=1, default=repr) + "\n"

    @cached_property
    def _content(self) -> dict[str, Any]:
        groups = [group.to_dict() for group in self.groups]
        return {
            "optimizer": self.optimizer,
            "groups": groups,
            "frozen": list(self.frozen),
            "frozen_shapes": {fqn: list(shape) for fqn, shape in self.frozen_shapes.items()},
        }


def merge(
    decided: Iterable[tuple[Entry, Verdict]],
    defaults: Mapping[str, Any],
    optimizers: Mapping[str | None, tuple[str, Mapping[str, Any]]],
) -> tuple[Group, ...]:
    """One group per distinct verdict, in the order of first appearance.

    Args:
        decided: The trainable parameters with their verdicts, in the order of the walk.
        defaults: The optimizer's own lr and weight_decay, for groups whose verdict has none.
        optimizers: `Verdict.part` → the type of that optimizer, and its own hyper-parameters.
    """
    first: dict[Verdict, Verdict] = {}  # a verdict → the first that says the same
    alike: dict[tuple[str, tuple[str, ...], str | None], list[Verdict]] = {}
    merged: dict[Verdict, list[Entry]] = {}
    for entry, verdict in decided:
        if verdict not in first:
            others = alike.setdefault((verdict.label, verdict.rules, verdict.part), [])
            options = verdict.over(defaults)
            same = (other for other in others if other.over(defaults) == options)
            first[verdict] = next(same, verdict)
            others.append(verdict)
        merged.setdefault(first[verdict], []).append(entry)
    names = _names(merged)
    return tuple(
        Group(
            names[verdict],
            verdict.rules,
            verdict.over(defaults),
            verdict.why,
            tuple(entries),
            optimizers[verdict.part][0],
            verdict.part,
            optimizers[verdict.part][1],
        )
        for verdict, entries in merged.items()
    )


def _names(verdicts: Iterable[Verdict]) -> dict[Verdict, str]:
    """Names for the groups of `verdicts`. The rules' own come first: no custom key takes `norm` from them."""
    taken = {"all"}
    names = {}
    for verdict in sorted(verdicts, key=lambda verdict: verdict.key is not None):
        names[verdict] = free_name(verdict.label, taken)
        taken.add(names[verdict])
    return names


def free_name(label: str, taken: set[str]) -> str:
    """`label` in the characters that a TensorBoard tag and a file name may have; a clash gets `.2`."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", label).strip(".") or "_"
    if name not in taken:
        return name
    number = 2
    while f"{name}.{number}" in taken:
        number += 1
    return f"{name}.{number}"
