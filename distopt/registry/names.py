"""The short names of each kind, and what can be said about a type without importing anything."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from distopt.errors import ConfigError, nearest

_SHIPPED = {
    "model": ("distopt.models", ("ByteGPT", "ConvNet", "ResNet50")),
    "dataset": ("distopt.data", ("StdlibText", "Digits", "ImageFolder", "LabelledText", "TokenFile")),
    "collate": ("distopt.data", ("causal_lm",)),
    "callback": ("distopt.callbacks", ("EarlyStop",)),
    "constructor": (
        "distopt.optim",
        ("DefaultOptimWrapperConstructor", "LearningRateDecayOptimWrapperConstructor"),
    ),
}
"""Kind → the module of distopt's own, and their names."""
_EXPORTED = {
    "optimizer": ("torch.optim", "torch/optim/__init__.py"),
    "loss": ("torch.nn", "torch/nn/modules/loss.py"),
    "metric": ("torchmetrics", "torchmetrics/__init__.py"),
}
"""Kind → the module that has them, and the file whose `__all__` names them: importing would take seconds."""
_MANY = 30
"""More names than this are not listed in a message."""


def check_name(name: str, kind: str, key: str) -> None:
    """Says all that can be said about a type without importing anything.

    Args:
        name: The type, as the config gives it.
        kind: "model", "dataset", "collate", "loss", "optimizer", "metric", "callback", "constructor"; and
            without short names "module" (a class of modules) and "object" (whatever is another's argument).
        key: Where it stands (`model.type`).

    Raises:
        ConfigError: An unknown short name, or no import path; a metric, and torchmetrics is not installed.
    """
    if kind == "metric" and find_spec("torchmetrics") is None:
        raise ConfigError(key, "needs torchmetrics: pip install 'distopt[metrics]'", given=name)
    known = short_names(kind)
    short = name.removeprefix("torch.optim.") if kind == "optimizer" else name
    if short.isidentifier():
        if short not in known:
            listed = ", ".join(known) if len(known) < _MANY else f"a name of {_EXPORTED[kind][0]}'s"
            allowed = " or ".join(filter(None, (listed, "an import path (package.module:Name)")))
            raise ConfigError(
                key, "unknown type", given=name, allowed=allowed, suggestion=nearest(short, known)
            )
    elif name.count(":") > 1 or not all(part.isidentifier() for part in re.split("[.:]", name)):
        raise ConfigError(
            key, "neither a short name nor an import path", given=name, allowed="package.module:Name"
        )


def short_names(kind: str) -> Mapping[str, str]:
    """The short names of a kind → the import path that each stands for."""
    if kind in _EXPORTED:
        module, file = _EXPORTED[kind]
        names = _classes(file)
    else:
        module, names = _SHIPPED.get(kind, ("", ()))
    return {name: f"{module}:{name}" for name in names}


@cache
def _classes(file: str) -> tuple[str, ...]:
    """The classes in the `__all__` of a file of an installed package, by its path below site-packages."""
    package, _, path = file.partition("/")
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    source = Path(spec.submodule_search_locations[0], path).read_text(encoding="utf-8")
    exported = re.search(r"^__all__ = (\[.*?\])", source, re.MULTILINE | re.DOTALL)
    assert exported is not None
    names: list[str] = ast.literal_eval(exported[1])
    return tuple(name for name in names if name[0].isupper() and name != "Optimizer")
