"""All callbacks of a run, called as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distopt.callbacks.base import Callback, Run
from distopt.callbacks.rows import make_plain
from distopt.errors import ConfigError


class Callbacks:
    """Calls each hook of those that define it, in the order of the config.

    Args:
        callbacks: Config key (`callbacks.0`) → callback.
    """

    def __init__(self, callbacks: Mapping[str, Callback]) -> None:
        self._callbacks = callbacks
        self._names = _distinct(type(callback).__name__ for callback in callbacks.values())
        # Looked up once: a run without a hook pays nothing for it in its steps.
        self._of_steps = self._defining("on_step")
        self._of_logs = self._defining("on_log")

    def on_start(self, run: Run) -> None:
        self._tell(self._callbacks, lambda callback: callback.on_start(run))

    def on_step(self, run: Run) -> None:
        self._tell(self._of_steps, lambda callback: callback.on_step(run))

    def on_log(self, run: Run, row: dict[str, Any]) -> None:
        """Raises ConfigError for what a callback puts into `row` and cannot be recorded."""

        def call(callback: Callback) -> None:
            callback.on_log(run, row)
            make_plain(row)

        self._tell(self._of_logs, call)

    def on_eval(self, run: Run, row: dict[str, Any]) -> None:
        """Raises ConfigError for what a callback puts into `row` and cannot be recorded."""

        def call(callback: Callback) -> None:
            callback.on_eval(run, row)
            make_plain(row)

        self._tell(self._callbacks, call)

    def on_save(self, run: Run, checkpoint: Path) -> None:
        self._tell(self._callbacks, lambda callback: callback.on_save(run, checkpoint))

    def on_end(self, run: Run) -> None:
        self._tell(self._callbacks, lambda callback: callback.on_end(run))

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """The state of each, by the name of its class; empty where it has none."""
        states = (callback.state_dict() for callback in self._callbacks.values())
        return dict(zip(self._names, states, strict=True))

    def load_state_dict(self, states: Mapping[str, dict[str, Any]]) -> None:
        for name, callback in zip(self._names, self._callbacks.values(), strict=True):
            if states.get(name):
                callback.load_state_dict(states[name])

    def _defining(self, hook: str) -> dict[str, Callback]:
        """Those that do something there."""
        return {
            key: callback
            for key, callback in self._callbacks.items()
            if getattr(type(callback), hook) is not getattr(Callback, hook)
        }

    def _tell(self, callbacks: Mapping[str, Callback], call: Callable[[Callback], None]) -> None:
        for key, callback in callbacks.items():
            try:
                call(callback)
            except ConfigError as error:  # in a callback's own words, its keys are its arguments
                error.under(key)
                raise


def _distinct(names: Any) -> Sequence[str]:
    """The second `EarlyStop` is `EarlyStop.2`."""
    counts: dict[str, int] = {}
    found = []
    for name in names:
        counts[name] = counts.get(name, 0) + 1
        found.append(name if counts[name] == 1 else f"{name}.{counts[name]}")
    return found
