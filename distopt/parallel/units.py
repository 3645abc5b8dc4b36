"""FSDP units: which modules are gathered and freed together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from torch import nn

from distopt import names


def find_units(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks of `model`, outermost first found; the rest belongs to the root unit.

    A block that shares a parameter with something outside itself is left to the root too: separate
    units would come out with a copy each, and the tie would be lost.
    """
    ties = names.ties(model)
    units: dict[int, nn.Module] = {}
    for path, block in _repeated_blocks(names.unwrap(model), ""):
        inside = [[fqn.startswith(f"{path}.") for fqn in tie] for tie in ties]
        if not any(any(tie) and not all(tie) for tie in inside):
            units[id(block)] = block
    return list(units.values())


def _repeated_blocks(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """Children of one container that are of one class and have children themselves, as (path, module)."""
    children = {f"{path}.{name}" if path else name: child for name, child in module.named_children()}
    counts = Counter(type(child) for child in children.values())
    is_container = isinstance(module, nn.ModuleList | nn.Sequential)
    for child_path, child in children.items():
        is_block = any(True for _ in child.children()) and any(True for _ in child.parameters())
        if is_container and is_block and counts[type(child)] > 1:
            yield child_path, child
        else:
            yield from _repeated_blocks(child, child_path)
