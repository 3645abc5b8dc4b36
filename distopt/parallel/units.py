"""FSDP units: which modules are gathered and freed together."""

from __future__ import annotations

from collections.abc import Container, Sequence

from torch import nn

from distopt import names
from distopt.blocks import find_blocks
from distopt.parallel.selection import select


def find_units(model: nn.Module, patterns: Sequence[str] | None = None) -> list[nn.Module]:
    """The modules that become units, in the order of the walk; the rest belongs to the root unit.

    A unit that shares a parameter with something outside itself is left to the root too: separate
    units would come out with a copy each, and the tie would be lost.

    Args:
        model: Not sharded yet.
        patterns: What `strategy.units` says; by default the classes that a model of transformers' names as
            indivisible, or else the repeated blocks.

    Raises:
        ConfigError: A pattern matches nothing.
    """
    units = {f"{fqn}.": module for fqn, module in _chosen(model, patterns).items()}
    left: set[str | None] = set()
    for tie in names.ties(names.visits(model)):
        around = {_unit_around(fqn, units) for fqn in tie}
        if len(around) > 1:
            left.update(around)
    return [module for prefix, module in units.items() if prefix not in left]


def _chosen(model: nn.Module, patterns: Sequence[str] | None) -> dict[str, nn.Module]:
    if patterns is not None:
        return select(model, patterns, "strategy.units")
    blocks = {block.prefix[:-1]: block.module for block in find_blocks(model)}
    indivisible = getattr(names.unwrap(model), "_no_split_modules", None) or ()
    present = {names.module_type(module).__name__ for module in model.modules()}.intersection(indivisible)
    # Where the blocks are among them, they are the finer cut.
    return blocks or (select(model, sorted(present), "strategy.units") if present else {})


def _unit_around(fqn: str, prefixes: Container[str]) -> str | None:
    """The prefix of the innermost unit that `fqn` is in."""
    ends = (end for end in range(len(fqn), 0, -1) if fqn[end - 1] == ".")
    return next((fqn[:end] for end in ends if fqn[:end] in prefixes), None)
