"""Building what a section of the config describes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from distopt.errors import ConfigError, describe
from distopt.registry.arguments import arguments_of, check_arguments, is_object, parameters_of
from distopt.registry.resolve import resolve

if TYPE_CHECKING:
    from distopt.config import Component


def build(component: Component, kind: str, key: str, **provided: Any) -> Any:
    """Builds a component from its type and arguments.

    An argument that is a mapping whose `type` is an import path with a colon is an object to build, too:
    `config: {type: "transformers:GPT2Config", n_layer: 2}`, at any depth.

    Args:
        component: The section of the config.
        kind: As for `check_name`.
        key: Where the section stands (`data.train`).
        **provided: Further arguments, which are not the user's to give.

    Raises:
        ConfigError: As `resolve` and `check_arguments`; or a constructor raised.
    """
    factory = resolve(component.type, kind, f"{key}.type")
    check_arguments(factory, component.arguments, key, provided)
    return _call(factory, component.type, key, {**_build_objects(component.arguments, key), **provided})


def build_function(component: Component, kind: str, key: str, *, takes: int) -> Callable[..., Any]:
    """Builds what is going to be called: an instance of a class, or a function with its arguments bound.

    Args:
        component: The section of the config.
        kind: As for `check_name`.
        key: Where the section stands (`loss`).
        takes: The number of arguments in a call. A function's first parameters are for them, and the
            config's arguments for the others.

    Raises:
        ConfigError: As `build`; or what it names cannot be called so.
    """
    factory = resolve(component.type, kind, f"{key}.type")
    if inspect.isclass(factory):
        instance = build(component, kind, key)
        if not callable(instance):
            problem, allowed = "its instances cannot be called", "a function, or a class with __call__"
            raise ConfigError(f"{key}.type", problem, given=component.type, allowed=allowed)
        return instance  # type: ignore[no-any-return]
    check_arguments(factory, component.arguments, key, _first_names(factory, takes, component.type, key))
    arguments = _build_objects(component.arguments, key)
    return partial(factory, **arguments) if arguments else factory


def _build_objects(value: Any, key: str) -> Any:
    """A value with the objects in it built, the innermost first."""
    if is_object(value):
        factory = resolve(value["type"], "object", f"{key}.type")
        return _call(factory, value["type"], key, _build_objects(arguments_of(value), key))
    if isinstance(value, Mapping):
        return {name: _build_objects(inner, f"{key}.{name}") for name, inner in value.items()}
    if isinstance(value, list):
        return [_build_objects(inner, f"{key}.{i}") for i, inner in enumerate(value)]
    return value


def _call(factory: Callable[..., Any], name: str, key: str, arguments: Mapping[str, Any]) -> Any:
    try:
        return factory(**arguments)
    except ConfigError as error:  # in a component's own words, its keys are its arguments
        error.under(key)
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(key, f"{name} raised {describe(error)}") from error


def _first_names(function: Callable[..., Any], count: int, name: str, key: str) -> list[str]:
    """The names of a function's first parameters, which a call by position is going to fill."""
    try:
        parameters = parameters_of(function)
    except ValueError:
        return []
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) < count and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        problem = f"is called with {count} arguments by position, and takes {len(positional)}"
        raise ConfigError(f"{key}.type", problem, given=name)
    return [parameter.name for parameter in positional[:count]]
