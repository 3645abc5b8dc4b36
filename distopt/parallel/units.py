"""FSDP units: which modules are gathered and freed together."""

from __future__ import annotations

from collections.abc import Sequence

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
        patterns: What `strategy.units` says; by default the repeated blocks, or else the classes that a model
            of transformers' names as indivisible.

    Raises:
        ConfigError: A pattern matches nothing.
    """
    ties = names.ties(names.visits(model))
    units = _chosen(model, patterns)
    return [module for fqn, module in units.items() if not any(_parts(f"{fqn}.", tie) for tie in ties)]


def _chosen(model: nn.Module, patterns: Sequence[str] | None) -> dict[str, nn.Module]:
    if patterns is not None:
        return select(model, patterns, "strategy.units")
    blocks = {block.prefix[:-1]: block.module for block in find_blocks(model)}
    indivisible = getattr(names.unwrap(model), "_no_split_modules", None) or ()
    present = {names.module_type(module).__name__ for module in model.modules()}.intersection(indivisible)
    # Where the blocks are among them, they are the finer cut.
    return blocks or (select(model, sorted(present), "strategy.units") if present else {})


def _parts(prefix: str, tie: Sequence[str]) -> bool:
    """Whether the module at `prefix` has a part of `tie`, and not all of it."""
    inside = [fqn.startswith(prefix) for fqn in tie]
    return any(inside) and not all(inside)
