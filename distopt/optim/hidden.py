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
    linear one, which is the head.
    """
    blocks = tuple(visit.prefix for visit in find_blocks(census.model))
    linear = [
        e for e, place in census.places() if len(e.shape) == 2 and issubclass(place.holder.cls, nn.Linear)
    ]
    head = linear[-1:] if not blocks else []

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
        if len(entry.shape) == 2 and entry not in head and all(is_hidden(entry, p) for p in entry.places)
        for place in entry.places
    )
