"""The facts of a job: what a scheduler has to know, whichever it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, PrivateAttr

from distopt.config import Section, validate
from distopt.config.document import Document, KeyPath, Positions, read
from distopt.config.section import Count, Text
from distopt.errors import ConfigError


def _amount(text: str) -> str:
    if not re.fullmatch(r"\d+[KMGT]?", text):
        allowed = "megabytes, or a whole number with K, M, G or T: 64G"
        raise ConfigError("", "no amount of memory", given=text, allowed=allowed)
    return text


class Job(Section):
    """One set of facts for every kind of script; what one kind has no use for it leaves."""

    name: Text = "distopt"
    """Of the job."""

    nodes: Count = 1
    """How many."""

    gpus: Annotated[int, Field(ge=0)] = 8
    """On each node, and as many ranks. 0: ranks on the CPU, as `ranks` says."""

    ranks: Count | None = None
    """On each node; by default one per GPU, or two without any."""

    cpus: Count | None = None
    """Of each node, cores; by default what the scheduler gives."""

    memory: Annotated[Text, AfterValidator(_amount)] | None = None
    """Of each node, such as 64G; by default what the scheduler gives."""

    time: Text | None = None
    """Limit of one start, in Slurm's form: minutes, 4:00:00, 2-00:00:00; by default the partition's."""

    partition: Text | None = None
    """Slurm's partition; the queue of Kubernetes' Kueue."""

    account: Text | None = None
    """Who pays, where the cluster asks."""

    grace: Count = 300
    """Seconds between the signal to save and the end."""

    requeues: Annotated[int, Field(ge=0)] = 100
    """How often a job that was stopped or lost is submitted again."""

    image: Text | None = None
    """A container image to run in."""

    mounts: list[Text] = Field(default_factory=list)
    """What the container sees: SOURCE:TARGET; on Kubernetes CLAIM:TARGET of a PersistentVolumeClaim."""

    env: dict[Text, str] = Field(default_factory=dict)
    """Environment variables of the ranks."""

    setup: list[Text] = Field(default_factory=list)
    """Lines of shell that run first: `module load cuda`, `source .venv/bin/activate`; all have to succeed."""

    _positions: Positions = PrivateAttr(default_factory=Positions)

    def locate(self, key: str) -> str | None:
        """The option, or the `file:line`, that a fact comes from; None for a default."""
        return self._positions.locate(key)

    @property
    def ranks_per_node(self) -> int:
        return self.ranks or self.gpus or 2

    @property
    def says_ranks(self) -> bool:
        """Whether it was given how many there are; else a node that is at hand may be looked at."""
        return not self.model_fields_set.isdisjoint({"gpus", "ranks"})

    @property
    def world(self) -> int:
        """Ranks on all nodes."""
        return self.nodes * self.ranks_per_node


def read_job(given: Mapping[str, Any], file: Path | None = None) -> Job:
    """The facts that are given on the command line, over those in a file.

    Args:
        given: Name → value.
        file: YAML, the same names: what is the same for all jobs of a cluster.

    Raises:
        ConfigError: An unknown name or a wrong value, with `file:line` or the option.
    """
    document = read(file) if file else Document({}, Positions())
    options: dict[KeyPath, str] = {(name,): f"--{name}" for name in given}
    positions = Positions({**document.positions.by_path, **options})
    try:
        job = validate(Job, {**document.data, **given})
    except ConfigError as error:
        raise error.located(positions.locate) from None
    job._positions = positions
    return job
