"""Scripts and manifests of every kind; the scripts in launch/ are of a job of which nothing is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from distopt.launch.job import Job
from distopt.launch.kubernetes import indexed_job, jobset, trainjob
from distopt.launch.nodes import local, multinode
from distopt.launch.slurm import slurm

Render = Callable[[Job, Sequence[str]], str]
"""The facts, and what follows `-m distopt.train` (none: what the script is given), → the script."""

SCRIPTS: Mapping[str, Render] = MappingProxyType(
    {
        "local": local,
        "multinode": multinode,
        "slurm": slurm,
        "kubernetes": indexed_job,
        "jobset": jobset,
        "trainjob": trainjob,
    }
)
"""Kind → what writes it."""

MANIFESTS = ("kubernetes", "jobset", "trainjob")
"""The kinds that run where nothing of this machine is: neither its files nor its environment."""


def world_of(kind: str, job: Job) -> int | None:
    """How many ranks a job of this kind has; None where that is for each node to say."""
    if kind in ("local", "multinode") and not job.says_ranks:
        return None
    return job.ranks_per_node if kind == "local" else job.world


def render(kind: str, job: Job, arguments: Sequence[str] = ()) -> str:
    """The script or manifest of a kind, as text."""
    return SCRIPTS[kind](job, arguments)
