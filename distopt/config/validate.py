"""Data → a section of the schema, or errors in the config's own words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from inspect import isclass
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from pydantic import ValidationError

from distopt.config.document import KeyPath, dotted
from distopt.config.section import OpenSection, Section
from distopt.errors import ConfigError, nearest

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

S = TypeVar("S", bound=Section)

_TYPES = {
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "float_type": "a number",
    "int_type": "a whole number",
    "list_type": "a list",
    "model_type": "a mapping",
    "path_type": "text",
    "string_type": "text",
}
_VALUES = {
    "finite_number": "a finite number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "string_pattern_mismatch": 'a share of the run: "5%"',  # the one pattern there is: RunShare
    "string_too_short": "text that is not empty",
    "too_short": "a list that is not empty",
}


def validate(section: type[S], data: object, key: str = "") -> S:
    """Checks plain data against a section of the schema.

    Args:
        section: What the data should be: `Config`, `OptimizerConfig`, ….
        data: A mapping, or an instance of the section, which is returned as it is.
        key: Where the section stands, for the keys in errors (`optimizer`).

    Raises:
        ConfigError: All that is wrong with it.
    """
    try:
        return section.model_validate(dict(data) if isinstance(data, Mapping) else data)
    except ValidationError as error:
        raise ConfigError.many(_explain(section, data, error)).under(key) from None


def _explain(section: type[Section], data: object, error: ValidationError) -> list[ConfigError]:
    """One ConfigError for each place where something is wrong."""
    places: dict[KeyPath, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        places.setdefault(_path(data, detail), []).append(detail)
    above = {path[:length] for path in places for length in range(len(path))}
    return [_describe(section, path, details) for path, details in places.items() if path not in above]


def _path(data: Any, detail: ErrorDetails) -> KeyPath:
    """The error's place in the data as it was given, which knows no union members and no short forms."""
    path: KeyPath = ()
    for part in detail["loc"]:
        in_list = isinstance(data, list) and isinstance(part, int)
        if in_list or (isinstance(data, Mapping) and part in data):
            path, data = (*path, part), data[part]
    return (*path, detail["loc"][-1]) if detail["type"] == "missing" else path


def _describe(section: type[Section], path: KeyPath, details: list[ErrorDetails]) -> ConfigError:
    """What is wrong at one place; several details are the alternatives of a union."""
    first, key = details[0], dotted(path)
    context: dict[str, Any] = first.get("ctx", {})
    if first["type"] == "value_error" and isinstance(context["error"], ConfigError):
        return context["error"].under(key)
    if first["type"] == "missing":
        return ConfigError(key, "missing")
    if first["type"] == "extra_forbidden":
        known = _section_at(section, first["loc"][:-1]).model_fields
        return ConfigError(key, "unknown key", allowed=known, suggestion=nearest(str(path[-1]), known))
    return ConfigError(
        key,
        "wrong type" if all(detail["type"] in _TYPES for detail in details) else "wrong value",
        given=first["input"],
        allowed=" or ".join(_allowed(section, detail) for detail in details),
        suggestion=_suggestion(first),
    )


def _allowed(section: type[Section], detail: ErrorDetails) -> str:
    kind, context, given = detail["type"], detail.get("ctx", {}), detail["input"]
    is_open = kind == "model_type" and issubclass(_section_at(section, detail["loc"]), OpenSection)
    if is_open and isinstance(given, str):
        return f"a mapping: {{type: {given}, …}}"
    if kind == "literal_error":
        return str(context["expected"]).replace("'", "").replace("False", "false")
    if text := _TYPES.get(kind) or _VALUES.get(kind):
        limits = {key: f"{value:g}" if isinstance(value, float) else value for key, value in context.items()}
        return text.format(**limits)
    return detail["msg"]  # pydantic's own, which may have braces in it


def _suggestion(detail: ErrorDetails) -> str | None:
    if detail["type"] != "literal_error" or not isinstance(detail["input"], str):
        return None
    return nearest(detail["input"], re.findall(r"'([^']*)'", detail["ctx"]["expected"]))


def _section_at(section: type[Section], loc: tuple[int | str, ...]) -> type[Section]:
    """The section that pydantic was in at `loc`."""
    for part in loc:
        field = section.model_fields.get(str(part))
        section = next(_sections(field.annotation), section) if field else section
    return section


def _sections(annotation: object) -> Iterator[type[Section]]:
    if isclass(annotation) and issubclass(annotation, Section):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections(argument)
