"""Job scripts of every kind; those in the repository's launch/ are of a job of which nothing is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from distopt.launch.bash import script
from distopt.launch.job import Job
from distopt.launch.slurm import slurm

Render = Callable[[Job, Sequence[str]], str]
"""The facts, and what follows `-m distopt.train` (none: what the script is given), → the script."""


def local(job: Job, arguments: Sequence[str]) -> str:
    """One node, with all its devices."""
    return script("local.sh", arguments, {**job.env, "RANKS": str(job.ranks_per_node)})


SCRIPTS: Mapping[str, Render] = MappingProxyType({"local": local, "slurm": slurm})
"""Kind → what writes it."""


def render(kind: str, job: Job, arguments: Sequence[str] = ()) -> str:
    """The script or manifest of a kind, as text."""
    return SCRIPTS[kind](job, arguments)
