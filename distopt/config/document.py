"""YAML text → plain data, and where each key of it stands.

Scalars are read by the core schema of YAML 1.2, in which `1e-3` is a number and `on`, `no`, `1:30` and
`2026-01-01` are text; PyYAML's own rules are those of YAML 1.1. Nothing but plain data is ever built.
Environment variables are replaced in values, in those without quotes before their type is decided.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from distopt.config.environment import escape, expand
from distopt.errors import ConfigError, nearest

KeyPath = tuple[str | int, ...]
"""The keys and list indices that lead to a value. Kept as a tuple, since a custom key may contain dots."""

_YAML = "tag:yaml.org,2002:"
_OPEN = "tag:open"
"""Of a scalar without quotes that has a variable in it: a text whose type depends on the variable's value."""
_CORE_SCHEMA = {
    "null": r"(~|null|Null|NULL|)",
    "bool": r"(true|True|TRUE|false|False|FALSE)",
    "int": r"([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)",
    "float": r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))",
    "merge": r"<<",
}
_SCALARS: dict[str, Callable[[str], object]] = {
    f"{_YAML}str": str,
    _OPEN: str,
    f"{_YAML}null": lambda text: None,
    f"{_YAML}bool": lambda text: text.lower() == "true",
    f"{_YAML}int": lambda text: int(text, 0) if text[:2] in ("0o", "0x") else int(text),
    f"{_YAML}float": lambda text: float(re.sub(r"\.(?=inf|nan)", "", text.lower())),
}


class _Loader(yaml.SafeLoader):
    """Knows the core schema alone."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        if kind is yaml.ScalarNode and implicit[0] and "${" in value:
            return _OPEN
        return str(super().resolve(kind, value, implicit))  # type: ignore[no-untyped-call]


class _Dumper(yaml.SafeDumper):
    """Quotes any text that YAML 1.1 or 1.2 would take for something else, and escapes what cannot be seen."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        return self.represent_scalar(f"{_YAML}str", data, style=None if data.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.represent_str)

_Loader.yaml_implicit_resolvers = {}
for _kind, _pattern in _CORE_SCHEMA.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"{_YAML}{_kind}", re.compile(f"^{_pattern}$"), None)


def dotted(path: KeyPath) -> str:
    """`("param_scheduler", 0, "end")` → `param_scheduler.0.end`."""
    return ".".join(map(str, path))


@dataclass(frozen=True)
class Positions:
    """Where each value was written. Equal to any other: it is no part of what a config says."""

    by_path: dict[KeyPath, str] = field(default_factory=dict, compare=False)

    def locate(self, key: str) -> str | None:
        """The `file:line` of a dotted key or, where there is no such key, of the nearest one above it."""
        while key and key not in self._by_key:
            key = key.rpartition(".")[0]
        return self._by_key.get(key)

    @cached_property
    def _by_key(self) -> dict[str, str]:
        return {dotted(path): position for path, position in self.by_path.items()}


@dataclass(frozen=True)
class Document:
    """The plain data of a config, and the positions of all its values."""

    data: dict[str, Any]
    positions: Positions


def read(path: Path) -> Document:
    """Reads one config file.

    Raises:
        ConfigError: Not readable, not UTF-8, not YAML, not one mapping, a tag or key that is no plain data.
    """
    name = str(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        near = nearest(path.name, (file.name for file in path.parent.glob("*.y*ml")))
        raise ConfigError(
            "", "no such file", where=name, suggestion=str(path.with_name(near)) if near else None
        ) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError("", "not UTF-8 text", where=f"{name}:{line}") from None
    except OSError as error:
        raise ConfigError("", f"cannot be read: {error.strerror}", where=name) from None
    data, positions = parse(text, name)
    if not isinstance(data, dict):
        problem = "the file is empty" if data is None else "the file is no mapping of keys to values"
        raise ConfigError("", problem, where=name)
    return Document(data, positions)


def parse(text: str, name: str) -> tuple[Any, Positions]:
    """Builds the plain data of a YAML text; `name` stands before the line in every position."""
    builder = _Builder(name)
    try:
        node = yaml.compose(text, _Loader)
        data = builder.value(node, ()) if node is not None else None
    except RecursionError:
        raise ConfigError("", "nested too deeply, or an alias inside its own anchor", where=name) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        context = f" ({error.context})" if error.context else ""
        raise ConfigError(
            "",
            f"not valid YAML: {error.problem}{context}",
            allowed=_quotes_missing(text, mark),
            where=f"{name}:{mark.line + 1}" if mark else name,
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError("", f"not valid YAML: {error}", where=name) from None
    return data, Positions({**builder.positions, (): name})


def dump(data: object) -> str:
    """YAML text that `parse` reads back to equal data."""
    return yaml.dump(escape(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _quotes_missing(text: str, mark: yaml.Mark | None) -> str | None:
    if mark and text[mark.index - 1 : mark.index + 1] == "${":
        return 'a variable inside [ ] or { } that stands in quotes: "${NAME}"'
    return None


class _Builder:
    """Turns composed nodes into plain data, noting where each stands."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.positions: dict[KeyPath, str] = {}

    def value(self, node: yaml.Node, path: KeyPath) -> object:
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_YAML}map":
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_YAML}seq":
            return [self._child(item, item, (*path, i)) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS:
            return self._scalar(node, path)
        tag = node.tag.replace(_YAML, "!!")
        raise self._error(node, path, f"the tag {tag} is not allowed: a config is plain data")

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> object:
        tag, text = node.tag, node.value
        try:
            if "${" in text:
                text = expand(text)
            if tag == _OPEN:
                tag = _Loader("").resolve(yaml.ScalarNode, text, (True, False))
            return _SCALARS.get(tag, str)(text)
        except ConfigError as error:
            raise error.under(dotted(path)).located(lambda key: self._where(node)) from None
        except ValueError as error:
            raise self._error(node, path, str(error)) from None

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, object]:
        pairs = {key.value: (key, value) for key, value in self._pairs(node, path)}
        return {name: self._child(key, value, (*path, name)) for name, (key, value) in pairs.items()}

    def _child(self, at: yaml.Node, node: yaml.Node, path: KeyPath) -> object:
        self.positions[path] = self._where(at)
        return self.value(node, path)

    def _pairs(self, node: yaml.MappingNode, path: KeyPath) -> Iterator[tuple[yaml.Node, yaml.Node]]:
        """What `<<` merges in, then the mapping's own pairs, which win."""
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            if key.tag not in (f"{_YAML}str", f"{_YAML}merge", _OPEN):
                raise self._error(key, path, "a key must be text: put it in quotes")
            if key.value in own:
                first = self._where(own[key.value][0])
                raise self._error(key, (*path, key.value), f"duplicate key, first at {first}")
            own[key.value] = key, value
            if key.tag == f"{_YAML}merge":
                yield from self._merged(value, path)
        yield from (pair for pair in own.values() if pair[0].tag != f"{_YAML}merge")

    def _merged(self, node: yaml.Node, path: KeyPath) -> Iterator[tuple[yaml.Node, yaml.Node]]:
        sources = node.value[::-1] if isinstance(node, yaml.SequenceNode) else [node]
        for source in sources:  # the first of a list wins, so it comes last
            if not isinstance(source, yaml.MappingNode):
                raise self._error(source, path, "<< takes a mapping, or a list of mappings")
            yield from self._pairs(source, path)

    def _where(self, node: yaml.Node) -> str:
        return f"{self.name}:{node.start_mark.line + 1}"

    def _error(self, node: yaml.Node, path: KeyPath, problem: str) -> ConfigError:
        return ConfigError(dotted(path), problem, where=self._where(node))
