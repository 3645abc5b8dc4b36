"""What is traced of a run by torch's profiler, and what is recorded of its memory."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from distopt.config.section import Count, Section
from distopt.errors import ConfigError


class ProfileConfig(Section):
    """The `profile` section; but for `begin`, it is of traces asked for while the run is on, too."""

    begin: list[Count] = Field(default_factory=list)
    """The first step of each trace; by default none is made unless asked for."""

    steps: Count = 3
    """How many steps a trace is of."""

    ranks: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | Literal["all"] = Field(
        default_factory=lambda: [0]
    )
    """The ranks that make one, each a file of its own; or all."""

    shapes: bool = False
    """The shapes of each operator's inputs, too; costs time."""

    stacks: bool = False
    """Where in the source each operator is called, too; costs more time."""

    memory: bool = False
    """What is allocated and freed, too."""

    memory_history: bool = False
    """On a GPU: keep in every step where memory is allocated, so that the snapshot written when it runs out
    shows it; costs some microseconds an allocation."""

    @model_validator(mode="after")
    def _traces_do_not_overlap(self) -> ProfileConfig:
        begins = sorted(self.begin)
        for begin, following in pairwise(begins):
            if following < begin + self.steps:
                problem = f"the traces from step {begin} and from step {following} overlap"
                raise ConfigError("begin", problem, given=self.begin, allowed=f"{self.steps} steps apart")
        return self
