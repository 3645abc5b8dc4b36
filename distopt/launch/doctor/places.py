"""How ranks are called: by their node where all of it is meant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from distopt.errors import listed
from distopt.launch.doctor.facts import Facts


class Places:
    """The names of the nodes, and of ranks on them.

    Args:
        everyone: The ranks that have come.
    """

    def __init__(self, everyone: Sequence[Facts]) -> None:
        hosts = {facts.node: facts.host for facts in everyone}
        often = Counter(hosts.values())
        self._names = {
            node: host if often[host] == 1 else f"{host} (node {node})" for node, host in hosts.items()
        }
        self._node_of = {facts.rank: facts.node for facts in everyone}
        self.ranks: dict[str, list[int]] = {}
        """Node → its ranks."""
        for facts in everyone:
            self.ranks.setdefault(facts.node, []).append(facts.rank)

    @property
    def nodes(self) -> list[str]:
        """Their names."""
        return [self._names[node] for node in self.ranks]

    def node(self, rank: int) -> str:
        """The name of a rank's node."""
        return self._names[self._node_of[rank]]

    def name(self, ranks: Collection[int]) -> str:
        """`n05`, `n05, n06`, `rank 3 (n00)`, `ranks 0–3, 9 (n00, n01)`, `all`."""
        own = set(ranks)
        if own == self._node_of.keys():
            return "all"
        nodes = [node for node, theirs in self.ranks.items() if own & set(theirs)]
        names = listed([self._names[node] for node in nodes], most=4)
        if sum(len(self.ranks[node]) for node in nodes) == len(own) and len(self.ranks) > 1:
            return names
        return f"{ranges(own)} ({names})" if len(self.ranks) > 1 else ranges(own)


def ranges(ranks: Iterable[int]) -> str:
    """`rank 3`, `ranks 0–3, 9`."""
    found: list[list[int]] = []
    for rank in sorted(ranks):
        if found and rank == found[-1][-1] + 1:
            found[-1] = [found[-1][0], rank]
        else:
            found.append([rank, rank])
    texts = [str(first) if first == last else f"{first}–{last}" for first, last in found]
    return f"rank{'s' if len(texts) > 1 or '–' in texts[0] else ''} {listed(texts)}"


def first_of_each_node(everyone: Sequence[Facts]) -> list[int]:
    """Its lowest rank."""
    first: dict[str, int] = {}
    for facts in everyone:
        first.setdefault(facts.node, facts.rank)
    return sorted(first.values())
