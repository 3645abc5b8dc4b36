"""A `type:` string → the class or function it names, and its arguments held against the signature.

A type is a short name, or an import path: `mypkg.net:Net`, `torch.optim.AdamW`. Nothing is imported before
`resolve`, and what is wrong with the user's code is said as a `ConfigError` that points into it.
"""

from __future__ import annotations

import ast
import inspect
import pkgutil
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

from distopt.errors import ConfigError, nearest, raise_all

if TYPE_CHECKING:
    from types import ModuleType

    from distopt.config import Component

_SHORT_NAMES = {
    "model": {"ByteGPT": "distopt.models:ByteGPT"},
    "dataset": {"StdlibText": "distopt.data:StdlibText"},
}
_BASES = {"model": "torch.nn:Module", "module": "torch.nn:Module", "optimizer": "torch.optim:Optimizer"}
"""Kind → what a class of this kind has to inherit from."""
_PLAIN_TYPES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    NoneType: "null",
}
"""The annotations, alone or in a union, that an argument's value is held against."""


def check_name(name: str, kind: str, key: str) -> None:
    """Says all that can be said about a type without importing anything.

    Args:
        name: The type, as the config gives it.
        kind: "model", "dataset", "optimizer" or "module" (a class of modules; no short names).
        key: Where it stands (`model.type`).

    Raises:
        ConfigError: An unknown short name, or no import path.
    """
    known = _short_names(kind)
    short = name.removeprefix("torch.optim.") if kind == "optimizer" else name
    if short.isidentifier():
        if short not in known:
            allowed = " or ".join(filter(None, (", ".join(known), "an import path (package.module:Name)")))
            raise ConfigError(
                key, "unknown type", given=name, allowed=allowed, suggestion=nearest(short, known)
            )
    elif name.count(":") > 1 or not all(part.isidentifier() for part in re.split("[.:]", name)):
        raise ConfigError(
            key, "neither a short name nor an import path", given=name, allowed="package.module:Name"
        )


def resolve(name: str, kind: str, key: str) -> Callable[..., Any]:
    """Imports what a type names. Modules of the working directory are found.

    Args:
        name: The type, as the config gives it.
        kind: As for `check_name`.
        key: Where it stands (`model.type`).

    Raises:
        ConfigError: There is no such module or name, the module raises, or the name is of another kind.
    """
    check_name(name, kind, key)
    path = _short_names(kind).get(name, name)
    module_name, _, attributes = path.partition(":") if ":" in path else path.rpartition(".")
    found: Any = _import(module_name, name, key)
    for attribute in attributes.split("."):
        if not hasattr(found, attribute):
            near = nearest(attribute, (public for public in dir(found) if not public.startswith("_")))
            raise ConfigError(key, f"{found.__name__} has no {attribute}", given=name, suggestion=near)
        found = getattr(found, attribute)
    if not callable(found):
        raise ConfigError(
            key, f"neither a class nor a function, but of type {type(found).__name__}", given=name
        )
    if kind in _BASES:
        _check_base(found, kind, name, key)
    return found  # type: ignore[no-any-return]


def check_arguments(
    factory: Callable[..., Any], arguments: Mapping[str, Any], key: str, provided: Iterable[str] = ()
) -> None:
    """Holds arguments against a signature, before anything is built.

    Args:
        factory: What is going to be called.
        arguments: What the config gives it, by name.
        key: The section that the arguments stand in (`model`).
        provided: Names that the caller passes itself: neither missing, nor the user's to give.

    Raises:
        ConfigError: All unknown and all missing arguments, and values that contradict a plain annotation
            (`int`, `float`, `bool`, `str`, `None`, and unions of these).
    """
    try:
        signature = inspect.signature(factory)
    except ValueError:  # some callables written in C have none
        return
    with suppress(Exception):  # annotations may be text that means nothing at run time
        signature = inspect.signature(factory, eval_str=True)
    parameters = list(signature.parameters.values())
    raise_all(_argument_errors(_name_of(factory), parameters, arguments, key, set(provided)))


def build(component: Component, kind: str, key: str, **provided: Any) -> Any:
    """Builds a component from its type and arguments.

    Args:
        component: The section of the config.
        kind: As for `check_name`.
        key: Where the section stands (`data.train`).
        **provided: Further arguments, which are not the user's to give.

    Raises:
        ConfigError: As `resolve` and `check_arguments`; or its constructor raised.
    """
    factory = resolve(component.type, kind, f"{key}.type")
    check_arguments(factory, component.arguments, key, provided)
    try:
        return factory(**component.arguments, **provided)
    except ConfigError as error:  # in a component's own words, its keys are its arguments
        error.under(key)
        raise
    except Exception as error:
        raise ConfigError(key, f"{component.type} raised {_describe(error)}") from error


def _short_names(kind: str) -> Mapping[str, str]:
    return _torch_optimizers() if kind == "optimizer" else _SHORT_NAMES.get(kind, {})


@cache
def _torch_optimizers() -> dict[str, str]:
    """The optimizers of torch.optim, read from its source: importing torch would take seconds."""
    torch = find_spec("torch")
    assert torch is not None
    assert torch.submodule_search_locations is not None
    source = Path(torch.submodule_search_locations[0], "optim", "__init__.py").read_text(encoding="utf-8")
    exported = re.search(r"^__all__ = (\[.*?\])", source, re.MULTILINE | re.DOTALL)
    assert exported is not None
    names: list[str] = ast.literal_eval(exported[1])
    return {name: f"torch.optim:{name}" for name in names if name[0].isupper() and name != "Optimizer"}


def _import(module: str, name: str, key: str) -> ModuleType:
    """Imports a module that `name` asks for."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:  # as under `python -m`
        sys.path.insert(0, str(Path.cwd()))
    try:
        return import_module(module)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module}.".startswith(f"{missing}."):
            near = _nearest_module(missing)
            raise ConfigError(key, f"there is no module {missing}", given=name, suggestion=near) from None
        raise ConfigError(key, f"importing {module} raised {_describe(error)}", given=name) from error


def _nearest_module(missing: str) -> str | None:
    parent, dot, leaf = missing.rpartition(".")
    path = getattr(sys.modules[parent], "__path__", []) if parent else None
    near = nearest(leaf, (module.name for module in pkgutil.iter_modules(path)))
    return near and f"{parent}{dot}{near}"


def _check_base(found: Callable[..., Any], kind: str, name: str, key: str) -> None:
    module, _, attribute = _BASES[kind].partition(":")
    wanted = f"{module}.{attribute}"
    if inspect.isclass(found):
        if not issubclass(found, getattr(import_module(module), attribute)):
            raise ConfigError(key, f"not a {wanted}", given=name, allowed=f"a subclass of {wanted}")
    elif kind == "module":
        raise ConfigError(key, "not a class", given=name, allowed=f"a subclass of {wanted}")


def _argument_errors(
    factory: str,
    parameters: list[inspect.Parameter],
    arguments: Mapping[str, Any],
    key: str,
    provided: set[str],
) -> Iterator[ConfigError]:
    named = [
        p
        for p in parameters
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in provided
    ]
    names = [p.name for p in named]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for name in arguments:
            if name not in names:
                yield ConfigError(
                    f"{key}.{name}",
                    f"unknown argument of {factory}",
                    allowed=names or "none: it takes no arguments",
                    suggestion=nearest(name, names),
                )
    for parameter in named:
        if parameter.name in arguments:
            value = arguments[parameter.name]
            if wanted := _contradicted(parameter, value):
                yield ConfigError(f"{key}.{parameter.name}", "wrong type", given=value, allowed=wanted)
        elif parameter.default is parameter.empty:
            yield ConfigError(f"{key}.{parameter.name}", f"missing argument of {factory}", allowed=names)


def _contradicted(parameter: inspect.Parameter, value: object) -> str | None:
    """What a plain annotation asks for instead of `value`; None where it fits, or nothing is asked for."""
    annotation = parameter.annotation
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    if not all(isinstance(kind, type) and kind in _PLAIN_TYPES for kind in kinds):
        return None
    fits = type(value) in kinds or (type(value) is int and float in kinds)
    if fits or (value is None and parameter.default is None):  # `depth: int = None` is often written
        return None
    return " or ".join(_PLAIN_TYPES[kind] for kind in kinds)


def _name_of(factory: Callable[..., Any]) -> str:
    return getattr(factory, "__qualname__", repr(factory))


def _describe(error: BaseException) -> str:
    """`ValueError: heads must divide width (/home/me/net.py:12)`."""
    text = error.msg if isinstance(error, SyntaxError) else error  # which says its place itself
    place = _place(error)
    return f"{type(error).__name__}: {text}" + (f" ({place})" if place else "")


def _place(error: BaseException) -> str | None:
    """The `file:line` in the user's code that an error comes from."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is ours
    installed = ("<", sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"))
    own = [frame for frame in frames if not frame.filename.startswith(installed)]
    last = (own or frames)[-1:]
    return f"{last[0].filename}:{last[0].lineno}" if last else None
