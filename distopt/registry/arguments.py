"""Arguments held against the signature of what they are for, before anything is built."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, TypeGuard, Union, get_args, get_origin

from distopt.errors import ConfigError, collecting, nearest, raise_all
from distopt.registry.resolve import resolve

_PLAIN_TYPES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    NoneType: "null",
}
"""The annotations, alone or in a union, that an argument's value is held against."""


def check_arguments(
    factory: Callable[..., Any], arguments: Mapping[str, Any], key: str, provided: Iterable[str] = ()
) -> None:
    """Holds arguments against a signature; those of objects among them, too.

    Args:
        factory: What is going to be called.
        arguments: What the config gives it, by name.
        key: The section that the arguments stand in (`model`).
        provided: Names that the caller passes itself: neither missing, nor the user's to give.

    Raises:
        ConfigError: All unknown and all missing arguments, values that contradict a plain annotation
            (`int`, `float`, `bool`, `str`, `None`, and unions of these), and what is wrong with objects.
    """
    errors = list(_signature_errors(factory, arguments, key, set(provided)))
    for at, value in objects(arguments, key):
        with collecting(errors):
            made_by = resolve(value["type"], "object", f"{at}.type")
            errors += _signature_errors(made_by, arguments_of(value), at, set())
    raise_all(errors)


def objects(value: Any, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The objects to build in a value, at any depth, each with its key."""
    if is_object(value):
        yield key, value
    if isinstance(value, Mapping | list):
        for name, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from objects(inner, f"{key}.{name}")


def is_object(value: Any) -> TypeGuard[Mapping[str, Any]]:
    """Whether a value is to be built: a mapping whose `type` is an import path with a colon."""
    return isinstance(value, Mapping) and isinstance(value.get("type"), str) and ":" in value["type"]


def arguments_of(value: Mapping[str, Any]) -> dict[str, Any]:
    """An object's keys beside `type`."""
    return {name: argument for name, argument in value.items() if name != "type"}


def parameters_of(factory: Callable[..., Any], *, follow_wrapped: bool = True) -> list[inspect.Parameter]:
    """What a callable takes, annotations evaluated where they can be.

    Raises:
        ValueError: It has no signature, as some callables written in C.
    """
    signature = inspect.signature(factory, follow_wrapped=follow_wrapped)
    with suppress(Exception):  # annotations may be text that means nothing at run time
        signature = inspect.signature(factory, follow_wrapped=follow_wrapped, eval_str=True)
    return list(signature.parameters.values())


def _signature_errors(
    factory: Callable[..., Any], arguments: Mapping[str, Any], key: str, provided: set[str]
) -> Iterator[ConfigError]:
    try:
        parameters = parameters_of(factory)
        takes_more = _has_keywords(parameters_of(factory, follow_wrapped=False))
    except ValueError:
        return
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = [p for p in parameters if p.kind in by_name and p.name not in provided]
    names = [p.name for p in named]
    callee = getattr(factory, "__qualname__", repr(factory))
    for name in arguments if not _has_keywords(parameters) else ():
        # What wraps a function may take more than that declares, as the configs of transformers do.
        if name not in names and not (takes_more and not get_close_matches(name, names, cutoff=0.8)):
            yield ConfigError(
                f"{key}.{name}",
                f"unknown argument of {callee}",
                allowed=names or "none: it takes no arguments",
                suggestion=nearest(name, names),
            )
    for parameter in named:
        if parameter.name in arguments:
            value = arguments[parameter.name]
            if wanted := _contradicted(parameter, value):
                yield ConfigError(f"{key}.{parameter.name}", "wrong type", given=value, allowed=wanted)
        elif parameter.default is parameter.empty:
            yield ConfigError(f"{key}.{parameter.name}", f"missing argument of {callee}", allowed=names)


def _has_keywords(parameters: list[inspect.Parameter]) -> bool:
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def _contradicted(parameter: inspect.Parameter, value: object) -> str | None:
    """What a plain annotation asks for instead of `value`; None where it fits, or nothing is asked for."""
    annotation = parameter.annotation
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    if is_object(value) or not all(isinstance(kind, type) and kind in _PLAIN_TYPES for kind in kinds):
        return None
    fits = type(value) in kinds or (type(value) is int and float in kinds)
    if fits or (value is None and parameter.default is None):  # `depth: int = None` is often written
        return None
    return " or ".join(_PLAIN_TYPES[kind] for kind in kinds)
