"""Hidden matrices: what an optimizer for the matrices inside a network, such as Muon, is made for."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from distopt.blocks import find_blocks
from distopt.optim.census import Census, Entry, Place


def is_matrix_optimizer(name: str) -> bool:
    """Whether a `type` names an optimizer that orthogonalises matrices."""
    return "muon" in name.lower()


def hidden_matrices(census: Census, is_norm: Callable[[Entry, Place], bool]) -> frozenset[str]:
    """Every name of the weights of two dimensions inside the repeated blocks of the model.

    Not those of norms and embeddings. In a model without repeated blocks: all such weights but the last
    linear one, which is the head, and its siblings in a list of heads.
    """
    blocks = tuple(visit.prefix for visit in find_blocks(census.model))
    heads = set() if blocks else _heads(census)

    def is_hidden(entry: Entry, place: Place) -> bool:
        return (
            place.name.endswith("weight")
            and not issubclass(place.holder.cls, nn.Embedding | nn.EmbeddingBag)
            and not is_norm(entry, place)
            and (not blocks or place.fqn.startswith(blocks))
        )

    return frozenset(
        place.fqn
        for entry in census.entries
        if len(entry.shape) == 2 and entry.fqn not in heads and all(is_hidden(entry, p) for p in entry.places)
        for place in entry.places
    )


def _heads(census: Census) -> set[str]:
    """The FQNs of the last linear weight and, where it stands in a list or mapping, of those beside it."""
    linear = [
        (entry, place)
        for entry, place in census.places()
        if len(entry.shape) == 2 and issubclass(place.holder.cls, nn.Linear)
    ]
    if not linear:
        return set()
    entry, last = linear[-1]
    above = last.holder.path.rpartition(".")[0]
    in_list = last.holder.parent is not None and issubclass(last.holder.parent, nn.ModuleList | nn.ModuleDict)
    beside = {e.fqn for e, place in linear if in_list and place.holder.path.rpartition(".")[0] == above}
    return {entry.fqn, *beside}
