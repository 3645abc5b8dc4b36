"""A config file and overrides → a `Config`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from distopt.config.bases import read_with_bases
from distopt.config.overrides import override
from distopt.config.schema import Config
from distopt.config.validate import validate
from distopt.errors import ConfigError


def load_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
    """Reads a config file and its bases, sets the overrides, and checks every key, type and value.

    Args:
        path: A YAML file.
        overrides: `key=value` texts with dotted keys, the value in YAML.

    Raises:
        ConfigError: All that is wrong, with the `file:line` of each.
    """
    document = override(read_with_bases(Path(path)), overrides)
    data = {"work_dir": f"runs/{Path(path).stem}", **document.data}
    try:
        config = validate(Config, data)
    except ConfigError as error:
        raise error.located(document.positions.locate) from None
    config._positions = document.positions
    return config
