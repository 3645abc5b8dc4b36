"""Names that a model's tensors have in a checkpoint → those that they have now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import accumulate

from distopt.errors import ConfigError, nearest, raise_all

Renaming = Mapping[str, str]
"""FQN of a tensor or module, in a checkpoint → now."""


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


def suggest(gone: Mapping[str, tuple[int, ...]], new: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """The renaming that the names and shapes of what is gone and new leave no doubt about.

    Of a pair the last parts of the names are the same, as many as of no other pair, and the shape.

    Args:
        gone: Name → shape, of what only the checkpoint has.
        new: The same, of what only the model has.
    """
    found: dict[str, str] = {}
    for name, shape in gone.items():
        partner = _only_best(name, [other for other in new if new[other] == shape])
        back = partner and _only_best(partner, [other for other in gone if gone[other] == shape])
        if partner is None or back != name:
            continue
        old, now = name.split("."), partner.split(".")
        alike = min(_alike(name, partner), len(old) - 1, len(now) - 1)
        found.setdefault(".".join(old[: len(old) - alike]), ".".join(now[: len(now) - alike]))
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


def _alike(one: str, other: str) -> int:
    """How many of the last parts of two names are the same."""
    pairs = list(zip(reversed(one.split(".")), reversed(other.split(".")), strict=False))
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))


def _only_best(name: str, others: Iterable[str]) -> str | None:
    """The one of `others` that ends most like `name`; None where none does, or two do."""
    scores = {other: _alike(name, other) for other in others}
    most = max(scores.values(), default=0)
    best = [other for other, score in scores.items() if score == most]
    return best[0] if most and len(best) == 1 else None
