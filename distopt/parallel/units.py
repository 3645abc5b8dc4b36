"""FSDP units: which modules are gathered and freed together."""

from __future__ import annotations

from torch import nn

from distopt import names
from distopt.blocks import find_blocks


def find_units(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks of `model`; the rest belongs to the root unit.

    A block that shares a parameter with something outside itself is left to the root too: separate
    units would come out with a copy each, and the tie would be lost.
    """
    ties = names.ties(names.visits(model))
    units: dict[int, nn.Module] = {}
    for block in find_blocks(model):
        inside = [[fqn.startswith(block.prefix) for fqn in tie] for tie in ties]
        if not any(any(tie) and not all(tie) for tie in inside):
            units[id(block.module)] = block.module
    return list(units.values())
