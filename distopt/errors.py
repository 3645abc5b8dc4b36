"""The exception for what a user got wrong, how it is said, and the one for what another rank has met.

A `ConfigError` speaks in config keys (`optimizer.paramwise_cfg.custom_keys`). The code that raises it
need not know which file the key came from: the entry points add `file:line` when they print it.
"""

from __future__ import annotations

import json
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Final

_SHOWN: Final = 20
"""How many errors of one message are written out."""

_OWN: Final = str(Path(__file__).parent)
_INSTALLED: Final = ("<", sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"))
"""How the files begin that are not the user's."""

LOST: Final = "ended without a word: killed, or crashed"
"""The reason of a rank that could not give one."""

SILENT: Final = "stopped, or in a call that lets no other thread run"
"""That of one which says nothing any more: nor would one whose node is gone."""

UNSET: Final = ...
"""Stands for "no value was given", since None is a value in YAML; stays itself when an error is pickled."""


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The most similar of `names` to what was typed, or None where nothing is close."""
    by_lower = {candidate.lower(): candidate for candidate in names}
    matches = get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[matches[0]] if matches else None


class ConfigError(ValueError):
    """The user's input is wrong: at `key`, with what was `given`, what is `allowed`, and a `suggestion`.

    Args:
        key: Dotted config key (`data.batch_size`); "" where no key is at fault (a missing file).
        problem: What is wrong, as a clause without a full stop (`"unknown key"`).
        given: The offending value; left out of the message when not passed.
        allowed: What would be right: a sentence fragment, or the names to choose from.
        suggestion: The nearest valid name, or the option that would allow what was given.
        where: `file:line` where only the raiser knows it (a YAML syntax error).
    """

    def __init__(
        self,
        key: str,
        problem: str,
        *,
        given: object = UNSET,
        allowed: str | Iterable[str] | None = None,
        suggestion: str | None = None,
        where: str | None = None,
    ) -> None:
        self.key = key
        self.problem = problem
        self.given = given
        self.allowed = allowed if allowed is None or isinstance(allowed, str) else ", ".join(allowed)
        self.suggestion = suggestion
        self.where = where
        self.others: tuple[ConfigError, ...] = ()
        super().__init__(key, problem)

    @classmethod
    def many(cls, errors: Iterable[ConfigError]) -> ConfigError:
        """One error to raise for several that were found together (at least one)."""
        first, *others = chain.from_iterable((error, *error.others) for error in errors)
        first.others = tuple(others)
        return first

    def under(self, prefix: str) -> ConfigError:
        """Itself, with every key standing below `prefix`."""
        for error in (self, *self.others):
            error.key = ".".join(filter(None, (prefix, error.key)))
        return self

    def located(self, locate: Callable[[str], str | None]) -> ConfigError:
        """Itself, with `where` filled in by `locate` where it was not known yet."""
        for error in (self, *self.others):
            error.where = error.where or locate(error.key)
        return self

    def __str__(self) -> str:
        messages = [error._message() for error in (self, *self.others[: _SHOWN - 1])]
        more = len(self.others) + 1 - len(messages)
        return "\n".join([*messages, f"and {more} more"] if more else messages)

    def _message(self) -> str:
        lines = [": ".join(part for part in (self.where, self.key, self.problem) if part)]
        if self.given is not UNSET:
            lines.append(f"  given:    {_shorten(self.given)}")
        if self.allowed:
            lines.append(f"  allowed:  {self.allowed}")
        if self.suggestion:
            lines.append(f"  did you mean: {self.suggestion}?")
        return "\n".join(lines)


class PeerError(RuntimeError):
    """Another rank has failed, and says why itself: this one ends because of it."""


def in_one_line(error: BaseException) -> str:
    """`TypeError: text`: the last line, where what a traceback holds ends in what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, PeerError):
        return " ".join(lines)
    # A ConfigError begins with what is wrong, and goes on with what would be right.
    line = lines[:1] if isinstance(error, ConfigError) else lines[-1:]
    return ": ".join([type(error).__name__, *line])


def describe(error: BaseException) -> str:
    """What the user's code raised, and where: `ValueError: heads must divide width (/home/me/net.py:12)`.

    The place is the innermost one in the user's code, or in an installed package where there is none.
    """
    text = error.msg if isinstance(error, SyntaxError) else error
    place = _place(error)
    return f"{type(error).__name__}: {text}" + (f" ({place})" if place else "")


def name_of(function: Callable[..., object]) -> str:
    """What the user calls a function or, where it is an instance, its class; for a partial, what is in it."""
    function = getattr(function, "func", function)
    return getattr(function, "__qualname__", type(function).__qualname__)


def listed(names: Sequence[str], most: int = 5) -> str:
    """`a, b, c and 12 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def fitting(names: Sequence[str], width: int) -> str:
    """`a, b and 12 more`: as many names as fit, but one at least."""
    texts = (listed(names, most) for most in range(len(names), 0, -1))
    return next((text for text in texts if len(text) <= width), listed(names, 1))


def raise_all(errors: Iterable[ConfigError]) -> None:
    """Raises all of `errors` as one; does nothing where there are none."""
    found = list(errors)
    if found:
        raise ConfigError.many(found)


@contextmanager
def collecting(errors: list[ConfigError]) -> Iterator[None]:
    """Puts a ConfigError of the block into `errors`, so that the next check can be made as well."""
    try:
        yield
    except ConfigError as error:
        errors.append(error)


def _place(error: BaseException) -> str | None:
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_OWN)
    ]
    users = [frame for frame in frames if not frame.filename.startswith(_INSTALLED)]
    last = (users or frames)[-1:]
    return f"{last[0].filename}:{last[0].lineno}" if last else None


def _shorten(value: object, limit: int = 200) -> str:
    """The value as it would stand in YAML: text in quotes where it could be taken for something else."""
    plain = isinstance(value, str) and value.isprintable() and value[:1].isalpha()
    if plain and str(value).lower() not in ("true", "false", "null"):
        text = str(value)
    else:
        text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= limit else text[: limit - 1] + "…"
