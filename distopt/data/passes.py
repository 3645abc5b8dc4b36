"""A dataset that can only be iterated, read pass after pass from any place on."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any

from distopt.data.batch import outline
from distopt.data.blame import blaming
from distopt.errors import ConfigError, describe

START: dict[str, Any] = {"epoch": 0, "offset": 0}
"""The place where everything begins."""


class Passes:
    """A dataset that is iterated again and again.

    Attributes:
        epoch: Passes that are over.
        offset: Samples read of this pass.
    """

    def __init__(self, dataset: Any, key: str, place: dict[str, Any]) -> None:
        self.dataset = dataset
        self.key = key
        self.epoch, self.offset = place["epoch"], place["offset"]
        self._state = place.get("dataset")
        self._name = type(dataset).__name__
        self._samples: Iterator[Any] | None = None

    def take(self, count: int, keep: Container[int] | None = None) -> list[Any]:
        """The next samples of this pass; fewer than `count` where it ends with them: then the next begins.

        Args:
            count: How many.
            keep: Those to keep, counted from 0; None stands for each of the others.

        Raises:
            ConfigError: The dataset raised, or the whole pass has nothing.
        """
        resumed = self._state is not None
        taken: list[Any] = []
        if self._samples is None:
            self._samples = self._begin()
        try:
            for i, sample in enumerate(islice(self._samples, count)):
                taken.append(sample if keep is None or i in keep else None)
        except Exception as error:
            what = f"{self._name}.__iter__, after {self.offset + len(taken)} samples,"
            raise ConfigError(self.key, f"{what} raised {describe(error)}") from error
        self.offset += len(taken)
        if len(taken) < count:
            self._samples = None
            if self.offset:
                self.epoch, self.offset = self.epoch + 1, 0
            elif resumed:  # the state was that of a pass just over
                return self.take(count, keep)
            else:
                problem, allowed = "the dataset yields nothing", None
                if self.epoch:
                    problem += f" in pass {self.epoch + 1}"
                    allowed = "an __iter__ that begins anew each time"
                raise ConfigError(self.key, problem, given=self._name, allowed=allowed)
        return taken

    def place(self) -> dict[str, Any]:
        """Where the next sample is, as plain data."""
        place = {"epoch": self.epoch, "offset": self.offset}
        if not hasattr(self.dataset, "state_dict"):
            return place
        with blaming(self.key, f"{self._name}.state_dict()"):
            state = self.dataset.state_dict()
        return place | {"dataset": self._plain(state)}

    def _begin(self) -> Iterator[Any]:
        used = self.offset
        if hasattr(self.dataset, "set_epoch"):
            with blaming(self.key, f"{self._name}.set_epoch({self.epoch})"):
                self.dataset.set_epoch(self.epoch)
        if self._state is not None and hasattr(self.dataset, "load_state_dict"):
            with blaming(self.key, f"{self._name}.load_state_dict()"):
                self.dataset.load_state_dict(self._state)
            used = 0
        self._state = None
        with blaming(self.key, f"{self._name}.__iter__"):
            samples: Iterator[Any] = iter(self.dataset)
            next(islice(samples, used, used), None)  # past what was used
        return samples

    def _plain(self, state: Any) -> Any:
        """A copy, since the dataset may go on changing what it returned."""
        with suppress(TypeError, ValueError):
            plain = json.loads(json.dumps(state))
            if plain == state:
                return plain
        raise ConfigError(
            self.key,
            f"{self._name}.state_dict() returned what does not survive as JSON",
            given=outline(state),
            allowed="numbers, text, true, false, null, lists, and mappings whose keys are text",
        )
