"""distopt: paramwise optimizer groups that are right whatever wraps the model.

The public names are resolved on first use, so that `import distopt` alone loads no torch: `--help` and
config errors answer at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from distopt.config import Config, load_config
    from distopt.errors import ConfigError
    from distopt.optim import Plan, build_optimizer, make_plan
    from distopt.runner import Runner
    from distopt.schedule import Schedule, build_schedule

_HOME = {
    "Config": "distopt.config",
    "ConfigError": "distopt.errors",
    "Plan": "distopt.optim",
    "Runner": "distopt.runner",
    "Schedule": "distopt.schedule",
    "build_optimizer": "distopt.optim",
    "build_schedule": "distopt.schedule",
    "load_config": "distopt.config",
    "make_plan": "distopt.optim",
}

__all__ = [
    "Config",
    "ConfigError",
    "Plan",
    "Runner",
    "Schedule",
    "__version__",
    "build_optimizer",
    "build_schedule",
    "load_config",
    "make_plan",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'distopt' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
