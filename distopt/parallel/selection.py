"""Modules by name: of their class, or a pattern of their FQN."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

from distopt import names
from distopt.errors import ConfigError, nearest


def select(model: nn.Module, patterns: Iterable[str], key: str) -> dict[str, nn.Module]:
    """The modules that any of `patterns` means, in the order of the walk; the root is none of them.

    Of nested modules that match a pattern it means the outermost: `layers.*` the layers, and not all that
    they consist of. Containers that are never called, a ModuleList, are none.

    Args:
        model: Wrapped or not.
        patterns: Names of classes (`Block`), or patterns of FQNs (`layers.*`).
        key: Where they stand in the config.

    Returns:
        FQN → module.

    Raises:
        ConfigError: One of them matches nothing.
    """
    modules = {
        visit.prefix[:-1]: visit.module
        for visit in names.visits(model)
        if visit.prefix and type(visit.module).forward is not nn.Module.forward
    }
    classes = {fqn: names.module_type(module).__name__ for fqn, module in modules.items()}
    chosen: set[str] = set()
    for pattern in patterns:
        matches = {fqn for fqn, cls in classes.items() if cls == pattern}
        matches |= _outermost(fqn for fqn in modules if fnmatchcase(fqn, pattern))
        if not matches:
            raise ConfigError(
                key,
                "no module of the model has this class or matches this pattern",
                given=pattern,
                allowed="the name of a class, or a pattern of FQNs: layers.*",
                suggestion=nearest(pattern, [*classes.values(), *modules]),
            )
        chosen |= matches
    seen: set[nn.Module] = set()
    # A module that stands in several places is one.
    return {
        fqn: module
        for fqn, module in modules.items()
        if fqn in chosen and not (module in seen or seen.add(module))  # type: ignore[func-returns-value]
    }


def _outermost(fqns: Iterable[str]) -> set[str]:
    """Those that are inside none of the others; in the order of the walk."""
    found: list[str] = []
    for fqn in fqns:
        if not any(fqn.startswith(f"{outer}.") for outer in found):
            found.append(fqn)
    return set(found)
