"""Names that a model's tensors have in a checkpoint → those that they have now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import accumulate

from distopt.errors import ConfigError, nearest, raise_all

Renaming = Mapping[str, str]
"""FQN of a tensor or module, in a checkpoint → now."""
Shapes = Mapping[str, tuple[int, ...]]
"""FQN of a tensor → its shape."""


def renamed(name: str, renaming: Renaming) -> str:
    """`name` as it is now: by the longest entry that is it, or a module around it."""
    prefixes = [prefix for prefix in _prefixes(name) if prefix in renaming]
    return renaming[prefixes[-1]] + name.removeprefix(prefixes[-1]) if prefixes else name


def outstanding(
    wanted: Renaming, saved: Collection[str], model: Iterable[str], done: Renaming
) -> dict[str, str]:
    """What of `resume_rename` is still to be done to a checkpoint.

    One that this run has written, and goes on from, has the new names already.

    Args:
        wanted: `resume_rename`.
        saved: The names of all parameters and buffers in the checkpoint.
        model: The same of the model as it is now.
        done: The `resume_rename` of the run that wrote the checkpoint: it decides between names that were
            swapped, both of which are there.

    Raises:
        ConfigError: An entry's source is not in the checkpoint, or its target not in the model, with the
            nearest name; or two tensors would get one name.
    """
    here, there = _all_prefixes(model), _all_prefixes(saved)
    left = {
        old: new for old, new in wanted.items() if new not in there or (old in there and done.get(old) != new)
    }
    raise_all(_unknown(wanted, left, there, here))
    after = [renamed(name, left) for name in saved]
    twice = next((name for name, count in Counter(after).items() if count > 1), None)
    if twice is not None:
        both = [name for name, new in zip(saved, after, strict=True) if new == twice]
        raise ConfigError("resume_rename", f"{' and '.join(both)} of the checkpoint would both be {twice}")
    return left


def suggest(saved: Shapes, here: Shapes) -> dict[str, str]:
    """The renaming that names and shapes leave no doubt about.

    Of a pair the shape is the same, and the last parts of the names, as many as of no other pair. A module is
    renamed where that is right for all that is in it.

    Args:
        saved: Name → shape of each tensor of the model in the checkpoint.
        here: The same of the model as it is now.
    """
    gone = {name: shape for name, shape in saved.items() if name not in here}
    new = {name: shape for name, shape in here.items() if name not in saved}
    partners = _only_best(gone, new)
    back = _only_best(new, gone)
    pairs = {old: now for old, now in partners.items() if back.get(now) == old}
    members: dict[str, list[str]] = {}
    for name in saved:
        for prefix in _prefixes(name):
            members.setdefault(prefix, []).append(name)
    found = {}
    for name, partner in pairs.items():
        ends = [(name, partner)]
        while (shorter := _without_last(*ends[-1])) is not None:
            ends.append(shorter)
        old, now = next(
            (old, now)
            for old, now in reversed(ends)  # the outermost module first; the tensor itself is always right
            if all(pairs.get(member) == now + member.removeprefix(old) for member in members[old])
        )
        found[old] = now
    return found


def _unknown(
    wanted: Renaming, left: Renaming, there: Collection[str], here: Collection[str]
) -> Iterator[ConfigError]:
    for old, new in wanted.items():
        key = f"resume_rename.{old}"
        if new not in here:
            problem = "no parameter, buffer or module of the model has this name"
            yield ConfigError(key, problem, given=new, suggestion=nearest(new, _as_deep(new, here)))
        elif old in left and old not in there:
            problem = "nothing in the checkpoint has this name"
            yield ConfigError(key, problem, given=old, suggestion=nearest(old, _as_deep(old, there)))


def _prefixes(name: str) -> Iterator[str]:
    """`a`, `a.b`, `a.b.c`."""
    return accumulate(name.split("."), lambda prefix, part: f"{prefix}.{part}")


def _all_prefixes(names: Iterable[str]) -> dict[str, None]:
    return {prefix: None for name in names for prefix in _prefixes(name)}


def _as_deep(name: str, among: Iterable[str]) -> list[str]:
    """Those with about as many parts, since there are very many."""
    return [other for other in among if abs(other.count(".") - name.count(".")) <= 1]


def _without_last(one: str, other: str) -> tuple[str, str] | None:
    """The modules of two names that end alike; None where they do not, or are in none."""
    (one_home, _, one_end), (other_home, _, other_end) = one.rpartition("."), other.rpartition(".")
    return (one_home, other_home) if one_home and other_home and one_end == other_end else None


def _alike(one: str, other: str) -> int:
    """How many of the last parts of two names are the same."""
    pairs = list(zip(reversed(one.split(".")), reversed(other.split(".")), strict=False))
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))


def _only_best(these: Shapes, those: Shapes) -> dict[str, str]:
    """Each of `these` → the one of `those`, of its shape, that ends most like it, where it is but one."""
    by_end: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name, shape in those.items():
        by_end.setdefault((name.rpartition(".")[2], shape), []).append(name)
    found = {}
    for name, shape in these.items():
        scores = {other: _alike(name, other) for other in by_end.get((name.rpartition(".")[2], shape), ())}
        best = [other for other, score in scores.items() if score == max(scores.values())]
        if len(best) == 1:
            found[name] = best[0]
    return found
