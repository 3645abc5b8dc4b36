"""Modules by name: of their class, or a pattern of their FQN."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

from distopt import names
from distopt.errors import ConfigError, nearest


def select(model: nn.Module, patterns: Iterable[str], key: str) -> dict[str, nn.Module]:
    """The modules that any of `patterns` means, in the order of the walk; the root is none of them.

    Args:
        model: Wrapped or not.
        patterns: Names of classes (`Block`), or patterns of FQNs (`layers.*`).
        key: Where they stand in the config.

    Returns:
        FQN → module.

    Raises:
        ConfigError: One of them matches nothing.
    """
    modules = {visit.prefix[:-1]: visit.module for visit in names.visits(model) if visit.prefix}
    classes = {fqn: names.module_type(module).__name__ for fqn, module in modules.items()}
    chosen: set[str] = set()
    for pattern in patterns:
        matches = {fqn for fqn in modules if pattern == classes[fqn] or fnmatchcase(fqn, pattern)}
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
