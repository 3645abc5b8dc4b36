"""The text of a bash script: a head with the facts of a job, and a body that is the same for all.

The body is a file beside this one, which shellcheck reads.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from importlib.resources import files


def script(
    body: str,
    arguments: Sequence[str],
    variables: Mapping[str, str],
    setup: Sequence[str],
    head: Sequence[str] = (),
) -> str:
    """The text of a bash script.

    Args:
        body: Name of the file with what follows the head.
        arguments: Of the training; those that the script is given come after them.
        variables: Name → value, exported unless the environment has it.
        setup: Lines of shell that run before; one that fails ends the script.
        head: Lines that follow the first, such as those that begin with #SBATCH.
    """
    lines = ["#!/usr/bin/env bash", *head, *(["set -e", *setup] if setup else [])]
    lines += [f"export {name}=${{{name}:-{shlex.quote(value)}}}" for name, value in variables.items()]
    if arguments:
        lines.append(f'set -- {shlex.join(arguments)} "$@"')
    text = files("distopt.launch").joinpath("bodies", body).read_text(encoding="utf-8")
    return "\n".join(lines) + "\n" + text
