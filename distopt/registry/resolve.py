"""Importing what a type names."""

from __future__ import annotations

import inspect
import pkgutil
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distopt.errors import ConfigError, describe, nearest
from distopt.registry.names import check_name, short_names

if TYPE_CHECKING:
    from types import ModuleType

_BASES = {
    "model": "torch.nn:Module",
    "module": "torch.nn:Module",
    "optimizer": "torch.optim:Optimizer",
    "metric": "torchmetrics:Metric",
    "callback": "distopt.callbacks:Callback",
    "constructor": "distopt.optim:Constructor",
}
"""Kind → what a class of this kind has to inherit from."""


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
    path = short_names(kind).get(name, name)
    module_name, _, attributes = path.partition(":") if ":" in path else path.rpartition(".")
    found: Any = _import(module_name, name, key)
    owner, owner_name = found, module_name
    for attribute in attributes.split("."):
        owner, found = found, _attribute(found, attribute, owner_name, name, key)
        owner_name += f".{attribute}"
    if not callable(found):
        raise ConfigError(
            key, f"neither a class nor a function, but of type {type(found).__name__}", given=name
        )
    if inspect.isclass(owner) and inspect.isfunction(found) and _first_parameter(found) == "self":
        allowed = "a class, a function, or a class or static method"
        raise ConfigError(key, "a method, which is called on an instance", given=name, allowed=allowed)
    if kind in _BASES:
        _check_base(found, kind, name, key)
    return found  # type: ignore[no-any-return]


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
        raise ConfigError(key, f"importing {module} raised {describe(error)}", given=name) from error


def _attribute(owner: Any, attribute: str, owner_name: str, name: str, key: str) -> Any:
    """An attribute that `name` asks for."""
    try:
        return getattr(owner, attribute)
    except AttributeError:
        near = nearest(attribute, (public for public in dir(owner) if not public.startswith("_")))
        raise ConfigError(key, f"{owner_name} has no {attribute}", given=name, suggestion=near) from None
    except (Exception, SystemExit) as error:  # a module that imports only on access
        raise ConfigError(key, f"{owner_name}.{attribute} raised {describe(error)}", given=name) from error


def _first_parameter(function: Callable[..., Any]) -> str | None:
    return next(iter(inspect.signature(function).parameters), None)


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
