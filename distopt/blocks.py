"""The blocks that a model repeats: a transformer's layers, a residual network's blocks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from distopt import names
from distopt.names import Visit

_Children = Mapping[str, Sequence[Visit]]
"""Prefix of a module → the modules right below it."""


def find_blocks(model: nn.Module) -> list[Visit]:
    """The repeated blocks of `model`, the same whatever wraps it.

    A block is a child of a ModuleList or Sequential, or of a ModuleDict whose keys are numbers, that has
    children and parameters, and a sibling of its own class. Outermost first: what is repeated inside a
    block, such as experts, is a part of it. Only where the siblings are stages, of which no two have
    parameters of the same shapes, it is what each of them repeats that counts.

    Returns:
        The blocks in the order of the walk.
    """
    root, *others = names.visits(model)
    children: dict[str, list[Visit]] = defaultdict(list)
    for visit in others:
        if visit.distinct:
            children[visit.prefix[: visit.prefix.rfind(".", 0, -1) + 1]].append(visit)
    return _blocks_below(root, children)


def _blocks_below(visit: Visit, children: _Children) -> list[Visit]:
    found = {}
    below = children.get(visit.prefix, ())
    for siblings in _alike(visit, below):
        if len(siblings) > 1:
            found.update(_blocks_of_stages(siblings, children) or {one.prefix: [one] for one in siblings})
    blocks = (found.get(child.prefix) or _blocks_below(child, children) for child in below)
    return [block for of_child in blocks for block in of_child]


def _alike(visit: Visit, below: Sequence[Visit]) -> Iterator[list[Visit]]:
    """The children of a container that can be blocks, by class."""
    by_class: dict[type[nn.Module], list[Visit]] = defaultdict(list)
    if _is_sequence(visit.module):
        for child in below:
            if child.module._modules and next(child.module.parameters(), None) is not None:
                by_class[names.module_type(child.module)].append(child)
    yield from by_class.values()


def _is_sequence(module: nn.Module) -> bool:
    """Numbers as keys are positions too: so torchtitan's models keep them in a part of a pipeline."""
    if isinstance(module, nn.ModuleDict):
        return all(key.isdigit() for key in module._modules)
    return isinstance(module, nn.ModuleList | nn.Sequential)


def _blocks_of_stages(siblings: Sequence[Visit], children: _Children) -> dict[str, list[Visit]] | None:
    """What is repeated inside each of `siblings`; None where they are blocks themselves."""
    if not _all_differ(siblings):
        return None
    repeated = {names.module_type(b.module) for stage in siblings for b in _blocks_below(stage, children)}
    blocks = {stage.prefix: list(_of_class(stage, repeated, children)) for stage in siblings}
    return blocks if all(blocks.values()) else None


def _of_class(visit: Visit, classes: set[type[nn.Module]], children: _Children) -> Iterator[Visit]:
    """The outermost blocks below `visit`: one that stands alone in its stage is known by its class."""
    below = children.get(visit.prefix, ())
    blocks = {one.prefix for siblings in _alike(visit, below) for one in siblings}
    for child in below:
        if child.prefix in blocks and names.module_type(child.module) in classes:
            yield child
        else:
            yield from _of_class(child, classes, children)


def _all_differ(siblings: Sequence[Visit]) -> bool:
    """Whether no two have parameters of the same shapes."""
    seen = set()
    for sibling in siblings:
        shapes = tuple(parameter.shape for parameter in sibling.module.parameters())
        if shapes in seen:
            return False
        seen.add(shapes)
    return True
