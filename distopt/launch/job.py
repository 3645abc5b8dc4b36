"""The facts of a job: what a scheduler has to know, whichever it is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr

from distopt.config import Section, validate
from distopt.config.document import Document, KeyPath, Positions, read
from distopt.config.section import Count, Text
from distopt.errors import ConfigError


def _amount(text: str) -> str:
    if not re.fullmatch(r"\d+[KMGT]?", text):
        allowed = "megabytes, or a whole number with K, M, G or T: 64G"
        raise ConfigError("", "no amount of memory", given=text, allowed=allowed)
    return text


def _variable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
        allowed = "letters, digits and _, a digit not first"
        raise ConfigError("", "no name of an environment variable", given=name, allowed=allowed)
    return name


Variable = Annotated[str, AfterValidator(_variable)]
Figure = Annotated[str, BeforeValidator(lambda given: str(given) if type(given) is int else given)]
"""Text that is often a number: `time: 60` needs no quotes."""


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

    memory: Annotated[Figure, AfterValidator(_amount)] | None = None
    """Of each node, such as 64G; by default what the scheduler gives."""

    time: Figure | None = None
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

    env: dict[Variable, Figure] = Field(default_factory=dict)
    """Environment variables of the ranks: NAME=VALUE as an option, a mapping in the file."""

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

    A list or mapping is added to the file's: `--env` leaves the variables of the cluster in place.

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
        job = validate(Job, {**document.data, **dict(_added(document.data, given))})
    except ConfigError as error:
        raise error.located(positions.locate) from None
    job._positions = positions
    return job


def _added(file: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What is given, with what the file has of it where there is room for both."""
    for name, fact in given.items():
        match file.get(name), fact:
            case list(before), list():
                yield name, [*before, *fact]
            case dict(before), dict():
                yield name, {**before, **fact}
            case _:
                yield name, fact
