"""`_base_`: a config file that builds on others, merged with them into one document.

Files are applied in order, each after its own bases, later over earlier: mappings merge key by key, all else
is replaced. `_delete_: true` in a mapping drops what was there before.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distopt.config.document import Document, KeyPath, Positions, dotted, read
from distopt.errors import ConfigError, raise_all

BASE, DELETE = "_base_", "_delete_"

Chain = tuple[tuple[Path, str], ...]
"""The files that led to a base, each with the `file:line` at which it names the next."""


def read_with_bases(path: Path) -> Document:
    """Reads a config file and all that it is based on; each position points into the file it came from.

    Raises:
        ConfigError: As `read`, for any of the files; or a file that is its own base.
    """
    data: Any = {}
    positions: dict[KeyPath, str] = {}
    for document in _in_order(path, read(path), ()):
        data = merge(data, document.data)
        positions |= document.positions.by_path
    kept = {(), *(place for place, _ in _items(data, ()))}
    return Document(data, Positions({place: where for place, where in positions.items() if place in kept}))


def merge(before: object, after: object) -> Any:
    """`after` over `before`, without their `_base_` and `_delete_`."""
    if isinstance(after, list):
        return [merge(None, item) for item in after]
    if not isinstance(after, dict):
        return after
    kept = before if isinstance(before, dict) and not after.get(DELETE) else {}
    merged = {key: merge(kept.get(key), item) for key, item in after.items() if key not in (BASE, DELETE)}
    return {**kept, **merged}


def misplaced(data: object, path: KeyPath = ()) -> Iterator[ConfigError]:
    """What is wrong with `_base_` and `_delete_` in the data that stands at `path`."""
    for place, value in _items(data, path):
        if place[-1] == BASE and len(place) > 1:
            yield ConfigError(dotted(place), "belongs at the top level of a file")
        if place[-1] == DELETE and not (len(place) > 1 and isinstance(value, bool)):
            yield ConfigError(dotted(place), "takes true, in a mapping below the top level", given=value)


def _in_order(path: Path, document: Document, chain: Chain) -> Iterator[Document]:
    """The bases of a file, theirs before them, and then the file itself."""
    raise_all(error.located(document.positions.locate) for error in misplaced(document.data))
    given = document.data.get(BASE, [])
    for i, name in enumerate(given if isinstance(given, list) else [given]):
        where = document.positions.locate(f"{BASE}.{i}") or ""
        if not isinstance(name, str) or not name:
            raise ConfigError(
                BASE, "wrong type", given=name, allowed="a path or a list of paths", where=where
            )
        base, led_here = path.parent / os.path.expanduser(name), (*chain, (path, where))  # noqa: PTH111
        yield from _in_order(base, _read_base(base, name, led_here), led_here)
    yield document


def _read_base(path: Path, name: str, chain: Chain) -> Document:
    """Reads the base that the last file of the chain calls `name`, at whose line its absence is said."""
    where = chain[-1][1]
    if path.resolve() in (file.resolve() for file, _ in chain):
        circle = " → ".join([*(place for _, place in chain), str(path)])
        raise ConfigError(BASE, f"leads back to a file that is being read: {circle}", where=where)
    try:
        return read(path)
    except ConfigError as error:
        if error.where != str(path):  # one line of it is wrong, which the error names
            raise
        near = error.suggestion and str(Path(name).with_name(Path(error.suggestion).name))
        raise ConfigError(BASE, f"{path}: {error.problem}", suggestion=near, where=where) from None


def _items(data: object, path: KeyPath) -> Iterator[tuple[KeyPath, object]]:
    """Every value in the data that stands at `path`, at any depth, with its own path."""
    if isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield (*path, key), value
            yield from _items(value, (*path, key))
