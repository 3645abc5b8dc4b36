"""A `type:` string → the class or function it names, built with arguments held against its signature.

A type is a short name, or an import path: `mypkg.net:Net`, `torch.optim.AdamW`. Nothing is imported before
it is resolved, and what is wrong with the user's code is said as a `ConfigError` that points into it.
"""

from distopt.registry.arguments import check_arguments, objects
from distopt.registry.build import build, build_function
from distopt.registry.names import check_name, short_names
from distopt.registry.resolve import resolve

__all__ = ["build", "build_function", "check_arguments", "check_name", "objects", "resolve", "short_names"]
