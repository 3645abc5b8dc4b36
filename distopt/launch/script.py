"""Job scripts: a head with the facts of the job, and a body that is the same for all.

The body is a file beside this one, which shellcheck reads; the scripts in the repository's launch/ are those
of a job of which nothing is given.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from types import MappingProxyType

from distopt.launch.job import Job

Render = Callable[[Job, Sequence[str]], str]
"""The facts, and what follows `-m distopt.train` (none: what the script is given), → the script."""


def local(job: Job, arguments: Sequence[str]) -> str:
    """One node, with all its devices."""
    return script("local.sh", arguments, {**job.env, "RANKS": str(job.ranks_per_node)})


def script(
    body: str, arguments: Sequence[str], variables: Mapping[str, str], head: Sequence[str] = ()
) -> str:
    """The text of a bash script.

    Args:
        body: Name of the file with what follows the head.
        arguments: Of the training; none leaves them to the script's own.
        variables: Name → value, exported unless the environment has it.
        head: Lines that follow the first, such as those that begin with #SBATCH.
    """
    lines = ["#!/usr/bin/env bash", *head]
    lines += [f"export {name}=${{{name}:-{shlex.quote(value)}}}" for name, value in variables.items()]
    if arguments:
        lines.append(f"set -- {shlex.join(arguments)}")
    text = files("distopt.launch").joinpath("bodies", body).read_text(encoding="utf-8")
    return "\n".join(lines) + "\n" + text


SCRIPTS: Mapping[str, Render] = MappingProxyType({"local": local})
"""Kind → what writes it."""


def render(kind: str, job: Job, arguments: Sequence[str] = ()) -> str:
    """The script or manifest of a kind, as text."""
    return SCRIPTS[kind](job, arguments)
