"""The best value so far of everything that evaluation yields."""

from __future__ import annotations

from typing import Any

from distopt.callbacks.base import Callback, Run


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

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.values, self.steps = dict(state["values"]), dict(state["steps"])


def is_better(value: float, than: float | None, higher: bool, by: float = 0.0) -> bool:
    """Whether `value` beats `than` by more than `by`; no number never does, anything beats none."""
    if value != value:
        return False
    return than is None or (value > than + by if higher else value < than - by)
