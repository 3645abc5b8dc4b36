"""Nodes that no scheduler gives: one, or several on each of which the same command is started."""

from __future__ import annotations

from collections.abc import Sequence

from distopt.launch.bash import script
from distopt.launch.job import Job


def local(job: Job, arguments: Sequence[str]) -> str:
    """One node, with all its devices."""
    return script("local.sh", arguments, _variables(job), job.setup)


def multinode(job: Job, arguments: Sequence[str]) -> str:
    """Several nodes that find one another."""
    nodes = {"NNODES": str(job.nodes)} if job.nodes > 1 else {}
    return script("multinode.sh", arguments, {**_variables(job), **nodes}, job.setup)


def _variables(job: Job) -> dict[str, str]:
    """Of the body; where nobody said how many ranks there are, it looks at the node."""
    ranks = {"RANKS": str(job.ranks_per_node)} if job.says_ranks else {}
    hidden = {} if job.gpus else {"CUDA_VISIBLE_DEVICES": ""}
    return {**hidden, **job.env, **ranks, "PET_SHUTDOWN_TIMEOUT": str(job.grace)}
