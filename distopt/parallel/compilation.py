"""torch.compile of a model's blocks or of all of it, and what is said where it does not go well."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from distopt.blocks import find_blocks
from distopt.config import CompileConfig
from distopt.errors import ConfigError, nearest

_PLACE = re.compile(r"in user code at (\S+:\d+)")
_IN_TRACE = re.compile(r'File "(.+)", line (\d+)')
_EXPLANATION = re.compile(r"(?:Explanation|Reason): (.*)")


def compile_model(model: nn.Module, config: CompileConfig) -> None:
    """Lets the forward be compiled when it first runs; names and parameters stay what they are.

    Raises:
        ConfigError: A backend or a mode that torch does not have; no repeated blocks to compile.
    """
    options: dict[str, Any] = {"dynamic": config.dynamic, "fullgraph": config.fullgraph}
    if config.backend not in torch.compiler.list_backends(exclude_tags=()):
        _check_known("backend", config.backend, torch.compiler.list_backends())
    if config.mode is not None:
        if config.backend != "inductor":
            raise ConfigError("compile.mode", f"means nothing to {config.backend}", given=config.mode)
        _check_known("mode", config.mode, list(torch._inductor.list_mode_options()))
        options["mode"] = config.mode
    modules = [model] if config.scope == "model" else [block.module for block in find_blocks(model)]
    if not modules:
        problem = "the model has no repeated blocks to compile"
        raise ConfigError("compile.scope", problem, given=config.scope, allowed="model")
    for module in modules:
        module.compile(backend=config.backend, **options)


@contextmanager
def compiling() -> Iterator[list[str]]:
    """For a forward and backward that may be compiled: gathers the places where the graph breaks.

    Raises:
        ConfigError: The compiler gave up, with its reason.
    """
    handler = _Places()
    log = logging.getLogger("torch._dynamo.symbolic_convert.__graph_breaks")
    level, propagate = log.level, log.propagate
    log.setLevel(logging.DEBUG)
    log.propagate = False
    log.addHandler(handler)
    try:
        yield handler.found
    except Exception as error:
        dynamo = sys.modules.get("torch._dynamo")
        if dynamo is None or not isinstance(error, dynamo.exc.TorchDynamoException):
            raise
        key = "compile.fullgraph" if isinstance(error, dynamo.exc.Unsupported) else "compile"
        text = str(error)
        places = [f" ({path}:{line})" for path, line in _IN_TRACE.findall(text)]
        problem = f"torch.compile gave up: {_explanation(text)}{''.join(places[-1:])}"
        raise ConfigError(key, problem, allowed="a model without this, or compile: false") from error
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate


class _Places(logging.Handler):
    """Keeps where in the user's code a graph broke, and why; each place once."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        place = _PLACE.search(text)
        if place and (found := f"{place[1]}: {_explanation(text)}") not in self.found:
            self.found.append(found)


def _explanation(text: str) -> str:
    """Dynamo's own, where it gives one, or the first line."""
    found = _EXPLANATION.findall(text)
    return found[-1] if found else text.strip().partition("\n")[0]


def _check_known(option: str, value: str, known: list[str]) -> None:
    if value not in known:
        problem = f"torch has no such {option} here"
        raise ConfigError(
            f"compile.{option}", problem, given=value, allowed=known, suggestion=nearest(value, known)
        )
