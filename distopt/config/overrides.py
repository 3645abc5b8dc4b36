"""Command-line overrides: `optimizer.lr=3e-4 param_scheduler.0.end=200`."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from distopt.config.bases import BASE, DELETE, merge, misplaced
from distopt.config.document import Document, KeyPath, Positions, dotted, parse
from distopt.errors import ConfigError, raise_all


def override(document: Document, texts: Sequence[str]) -> Document:
    """A document with `key=value` texts set in it, the last one winning; values are YAML.

    Mappings that are missing on the way are made. Where keys contain dots themselves, the longest that
    exists is taken. A mapping replaces what was there, with `_delete_` or without.

    Raises:
        ConfigError: A text without `=`, or with a key that leads through a value or past a list's end.
    """
    data, positions = deepcopy(document.data), dict(document.positions.by_path)
    for text in texts:
        where = f"override {text}"
        key, equals, value_text = text.partition("=")
        if not equals or not key:
            raise ConfigError("", "an override is written key=value", where=where)
        if {BASE, DELETE} & set(key.split(".")):
            raise ConfigError(key, "can be written in a file only", where=where)
        path = _set(data, key, _value(value_text, key, where), where)
        for stale in [p for p in positions if p[: len(path)] == path]:
            del positions[stale]
        for length in range(1, len(path) + 1):
            positions.setdefault(path[:length], where)
    return Document(data, Positions(positions))


def _value(text: str, key: str, where: str) -> object:
    """What the text says in YAML."""
    try:
        value, _ = parse(text, where)
    except ConfigError as error:
        error.where = None  # in one line of YAML, its number says nothing
        raise error.under(key).located(lambda _: where) from None
    raise_all(error.located(lambda _: where) for error in misplaced(value, (key,)))
    return merge(None, value)


def _set(data: dict[str, Any], key: str, value: object, where: str) -> KeyPath:
    """Sets `value` at the dotted `key` and returns the path that this took."""
    container: Any = data
    path: KeyPath = ()
    rest = key.split(".")
    while True:
        name, rest = _step(container, path, rest, where)
        path = (*path, name)
        if not rest:
            container[name] = value
            return path
        if isinstance(container, dict) and container.get(name) is None:
            container[name] = {}
        container = container[name]


def _step(container: object, path: KeyPath, rest: list[str], where: str) -> tuple[str | int, list[str]]:
    """The next key or index of `rest`, and what remains after it."""
    if isinstance(container, list):
        if rest[0] not in map(str, range(len(container))):
            raise ConfigError(
                dotted((*path, rest[0])),
                "no such item of the list",
                allowed=f"an index from 0 to {len(container) - 1}" if container else "nothing: it is empty",
                where=where,
            )
        return int(rest[0]), rest[1:]
    if not isinstance(container, dict):
        raise ConfigError(
            dotted(path),
            f"has no keys, so .{'.'.join(rest)} cannot be set in it",
            given=container,
            allowed=_as_mapping(dotted(path), container, ".".join(rest)),
            where=where,
        )
    for length in range(len(rest), 0, -1):
        if ".".join(rest[:length]) in container:
            return ".".join(rest[:length]), rest[length:]
    if not rest[0]:
        raise ConfigError(dotted(path), "an empty key", where=where)
    return rest[0], rest[1:]


def _as_mapping(key: str, value: object, rest: str) -> str | None:
    return f"the whole mapping: '{key}={{type: {value}, {rest}: …}}'" if isinstance(value, str) else None
