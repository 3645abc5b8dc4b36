"""The best value so far of everything that evaluation yields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distopt.callbacks.base import Callback, Run
from distopt.errors import ConfigError, nearest


class BestValues(Callback):
    """Adds `best` to each evaluation's row: metric → its best value so far, where better is known.

    Every run has it; it needs no entry in the config.
    """

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.steps: dict[str, int] = {}

    def on_eval(self, run: Run, row: dict[str, Any]) -> None:
        for name, value in row["eval"].items():
            higher = run.metrics.get(name)
            if higher is not None and is_better(value, self.values.get(name), higher):
                self.values[name], self.steps[name] = value, run.step
        row["best"] = dict(self.values)

    def is_best(self, name: str | None, step: int) -> bool:
        """Whether the best value of this metric so far is that of `step`."""
        return name is not None and self.steps.get(name) == step

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.values, self.steps = dict(state["values"]), dict(state["steps"])


def check_comparable(metrics: Mapping[str, bool | None], best: str | None) -> None:
    """Raises ConfigError where `checkpoint.best` is no metric of these, or one of which none is better."""
    if best is None or metrics.get(best) is not None:
        return
    known = [name for name, higher in metrics.items() if higher is not None]
    raise ConfigError(
        "checkpoint.best",
        "evaluation yields no such metric, or it does not say whether higher is better",
        given=best,
        allowed=", ".join(known),
        suggestion=nearest(best, known),
    )


def is_better(value: float, than: float | None, higher: bool, by: float = 0.0) -> bool:
    """Whether `value` beats `than` by more than `by`; no number never does, anything beats none."""
    if value != value:
        return False
    return than is None or (value > than + by if higher else value < than - by)
