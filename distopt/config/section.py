"""What the sections of the config have in common."""

from __future__ import annotations

import ast
import inspect
from itertools import pairwise
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer

Count = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]
RunShare = Annotated[str, Field(pattern=r"^(100|\d{1,2})(\.\d+)?%$")]
"""A length as a share of the run: `"5%"`."""
Time = Annotated[
    float,
    Field(ge=0, allow_inf_nan=False),
    AfterValidator(lambda time: int(time) if time.is_integer() else time),
    PlainSerializer(lambda time: time),
]
"""A number of epochs or steps; an int where it is whole."""
Multiplier = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A mapping of the config with a fixed set of keys."""

    # Without use_attribute_docstrings: reading the texts back from the source would double the import time.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class OpenSection(Section):
    """A mapping whose further keys are the arguments of what its `type` names."""

    model_config = ConfigDict(extra="allow")

    type: Text
    """What to build: a short name, or an import path (`mypkg.net:Net`, `torch.optim.AdamW`)."""

    @property
    def arguments(self) -> dict[str, Any]:
        """The keys that are not distopt's own."""
        return dict(self.model_extra or {})


class Component(OpenSection):
    """Something to build: its `type`, and beside it the arguments."""


def texts(section: type[Section]) -> dict[str, str]:
    """Key → the text below it in the source."""
    found = {}
    for one in (each for each in reversed(section.__mro__) if issubclass(each, Section)):
        (definition,) = ast.parse(inspect.getsource(one)).body
        assert isinstance(definition, ast.ClassDef)
        for key, below in pairwise(definition.body):
            if isinstance(key, ast.AnnAssign) and isinstance(below, ast.Expr):
                found[ast.unparse(key.target)] = inspect.cleandoc(ast.literal_eval(below.value))
    return found
