"""FSDP units: which modules are gathered and freed together."""

from __future__ import annotations

from collections.abc import Container

from torch import nn

from distopt import names
from distopt.blocks import find_blocks


def find_units(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks of `model`; the rest belongs to the root unit.

    A block that shares a parameter with something outside itself is left to the root too: separate
    units would come out with a copy each, and the tie would be lost.
    """
    blocks = {block.prefix: block.module for block in find_blocks(model)}
    left: set[str | None] = set()
    for tie in names.ties(names.visits(model)):
        around = {_block_around(fqn, blocks) for fqn in tie}
        if len(around) > 1:
            left.update(around)
    return [module for prefix, module in blocks.items() if prefix not in left]


def _block_around(fqn: str, prefixes: Container[str]) -> str | None:
    """The prefix of the block that `fqn` is in: no block is in another."""
    ends = (end for end, character in enumerate(fqn, 1) if character == ".")
    return next((fqn[:end] for end in ends if fqn[:end] in prefixes), None)
