"""The optimizer's groups as people read them: one row a group, its parameters' names drawn together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

COLUMNS = ("group", "tensors", "params", "share", "lr", "wd", "rule")


@dataclass(frozen=True)
class GroupRow:
    """One group of `plan.to_dict()["groups"]`, ready to be shown."""

    name: str
    tensors: int
    numel: int
    share: float
    """Of all trainable parameters, 0 … 1."""
    lr: str
    weight_decay: str
    rule: str
    """The rules that decided, or `base values`; then the optimizer, where there are several, and options
    other than lr and weight decay."""
    why: tuple[str, ...]
    """The arithmetic, an option a line."""
    names: tuple[str, ...]
    """Shared parameters with their aliases first, then patterns such as `blocks.{0-2}.norm1.weight`."""


def group_rows(groups: Sequence[Mapping[str, Any]]) -> list[GroupRow]:
    """The rows of a plan's groups, in the plan's order."""
    total = sum(_numel(group) for group in groups)
    several = len({group.get("optimizer") for group in groups}) > 1
    return [_row(group, total, [group["optimizer"]] if several else []) for group in groups]


def largest_group(groups: Sequence[Mapping[str, Any]]) -> str:
    """The name of the group with the most parameters: the one whose lr stands for all in one line."""
    return str(max(groups, key=_numel)["name"])


def collapse(names: Iterable[str]) -> list[str]:
    """Draws names together that differ in a number only: `blocks.{0-2}.norm{1,2}.weight`."""
    split = [tuple(re.split(r"(\d+)", name)) for name in names]
    # Numbers stand at the odd places. From the right, so that blocks of unequal depth stay exact.
    for place in reversed(range(1, max(map(len, split), default=0), 2)):
        numbers: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
        for parts in split:
            numbers.setdefault((parts[:place], parts[place + 1 :]), []).extend(parts[place : place + 1])
        split = [(*left, *_ranges(found), *right) for (left, right), found in numbers.items()]
    return ["".join(parts) for parts in split]


def _row(group: Mapping[str, Any], total: int, stepped_by: list[str]) -> GroupRow:
    options = dict(group["options"])
    lr, weight_decay = options.pop("lr", None), options.pop("weight_decay", None)
    rules = [" + ".join(group["rules"]) or "base values"]
    extra = [f"{option}={value}" for option, value in options.items()]
    params = group["params"]
    shared = [" = ".join([param["fqn"], *param["aliases"]]) for param in params if param["aliases"]]
    return GroupRow(
        name=group["name"],
        tensors=len(params),
        numel=_numel(group),
        share=_numel(group) / total,
        lr=_number(lr),
        weight_decay=_number(weight_decay),
        rule=", ".join(rules + stepped_by + extra),
        why=tuple(f"{option}: {reason}" for option, reason in group.get("why", {}).items()),
        names=(*shared, *collapse(param["fqn"] for param in params if not param["aliases"])),
    )


def _numel(group: Mapping[str, Any]) -> int:
    return sum(param["numel"] for param in group["params"])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _ranges(numbers: list[str]) -> tuple[str, ...]:
    """`["0", "1", "2", "5"]` → `("{0-2,5}",)`; one number stays itself, none gives nothing."""
    if len(numbers) < 2:
        return tuple(numbers)
    ordered = sorted(numbers, key=int)
    runs = []
    for _, run in groupby(enumerate(ordered), key=lambda item: int(item[1]) - item[0]):
        members = [number for _, number in run]
        runs.append(members[0] if len(members) == 1 else f"{members[0]}-{members[-1]}")
    return ("{" + ",".join(runs) + "}",)
