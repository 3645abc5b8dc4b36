"""What a schedule will do: the values of every group at given steps, without a run.

Steps count from 1 here, as in metrics.jsonl: row n has the values of `schedule.apply(n - 1)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from distopt.config import SchedulerConfig
from distopt.schedule.plateau import ReduceOnPlateau
from distopt.schedule.schedule import Schedule, slot_of
from distopt.schedule.types import parse
from distopt.schedule.window import Window

if TYPE_CHECKING:
    import torch


class Row(NamedTuple):
    """The values of one step."""

    step: int
    values: dict[str, dict[str, float]]
    """Option → group → value: of lr, and of all that an entry moves."""


class Curve(NamedTuple):
    """An option's values over some rows, of all groups that have the same."""

    groups: tuple[str, ...]
    values: tuple[float, ...]

    @property
    def name(self) -> str:
        """`default`, or `default +3` where it is that of three more groups."""
        first, *more = self.groups
        return f"{first} +{len(more)}" if more else first

    @property
    def moves(self) -> bool:
        return len(set(self.values)) > 1


def preview(schedule: Schedule, optimizer: torch.optim.Optimizer, steps: Iterable[int]) -> Iterator[Row]:
    """The rows of `steps`, one by one.

    Args:
        schedule: Of `optimizer`, before any evaluation.
        optimizer: A trial, which no one trains with: its groups are left with the last step's values.
        steps: 1-based.
    """
    names = [str(group.get("name", index)) for index, group in enumerate(optimizer.param_groups)]
    options = dict.fromkeys(["lr", *(window.param for window in schedule.windows)])
    for step in steps:
        schedule.apply(step - 1)
        values: dict[str, dict[str, float]] = {option: {} for option in options}
        for name, group in zip(names, optimizer.param_groups, strict=True):
            for option, of_groups in values.items():
                value = slot_of(option, group)[1]
                if value is not None:
                    of_groups[name] = float(value)
        yield Row(step, values)


def curves(rows: Sequence[Row], option: str) -> list[Curve]:
    """The different curves of an option, in the order of the groups."""
    groups: dict[tuple[float, ...], list[str]] = {}
    for name in rows[0].values[option]:
        groups.setdefault(tuple(row.values[option][name] for row in rows), []).append(name)
    return [Curve(tuple(names), values) for values, names in groups.items()]


def edges(schedule: Schedule, last: int) -> set[int]:
    """The first and the last step of the run, and of every entry's window inside it."""
    found = {1, last}
    for begin, end in (window.steps for window in schedule.windows):
        found |= {int(step) for step in (begin + 1, end) if step <= last}
    return found


def spread(last: int, count: int) -> set[int]:
    """`count` steps, as evenly spaced as can be, up to and with the last."""
    return {max(1, i * last // count) for i in range(1, count + 1)}


def plateaus(schedule: Schedule) -> list[Window]:
    """The entries that do what evaluation will tell them."""
    return [window for window in schedule.windows if isinstance(window.shape, ReduceOnPlateau)]


def needs_epochs(entries: Sequence[SchedulerConfig]) -> bool:
    """Whether the schedule can be built only where it is known how many steps an epoch has."""
    return any(_needs_epochs(f"param_scheduler.{i}", entry) for i, entry in enumerate(entries))


def _needs_epochs(key: str, entry: SchedulerConfig) -> bool:
    _, _, shape = parse(key, entry)
    lengths = (entry.begin, entry.end, *shape.given_lengths())
    by_step = entry.convert_to_iter_based or any(isinstance(length, str) for length in lengths)
    if entry.by_epoch and by_step:
        return any(length and not isinstance(length, str) for length in lengths)
    return entry.by_epoch


def as_json(row: Row) -> Mapping[str, object]:
    """As a row of metrics.jsonl."""
    return {"step": row.step, **row.values}
