"""`${NAME}` in a value of the config: what the environment says in its place."""

from __future__ import annotations

import os
import re

from distopt.errors import ConfigError, nearest

_REFERENCE = re.compile(
    r"\$\$\{"  # stands for a literal ${
    r"|\$\{(?:(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^{}]*))?\})?"
)


def expand(text: str) -> str:
    """Replaces each `${NAME}` and `${NAME:-default}`, and `$${` by a literal `${`.

    As in a shell, the default counts where the variable is not set or empty. It holds no further variable.

    Raises:
        ConfigError: A variable that is not set, without a default; or a `${` that begins neither form.
    """
    return _REFERENCE.sub(_value, text)


def escape(data: object) -> object:
    """Plain data, its texts written such that `expand` gives back what they were."""
    if isinstance(data, dict):
        return {key: escape(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [escape(item) for item in data]
    return data.replace("${", "$${") if isinstance(data, str) else data


def _value(reference: re.Match[str]) -> str:
    if reference[0] == "$${":
        return "${"
    name, default = reference["name"], reference["default"]
    if name is None:
        raise ConfigError(
            "",
            "${ does not begin an environment variable here",
            given=reference.string,
            allowed="${NAME}, ${NAME:-default} with no braces in the default, or $${ for a literal ${",
        )
    if default is not None:
        return os.environ.get(name) or default
    if name not in os.environ:
        raise ConfigError(
            "",
            f"the environment variable {name} is not set",
            allowed=f"a variable that is set, or a default: ${{{name}:-…}}",
            suggestion=nearest(name, os.environ),
        )
    return os.environ[name]
