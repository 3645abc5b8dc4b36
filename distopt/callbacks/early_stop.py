"""Ends a run whose evaluation no longer gets better."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distopt.callbacks.base import Callback, Run
from distopt.callbacks.best import is_better
from distopt.errors import ConfigError, nearest

MODES = {"min": False, "max": True}


class EarlyStop(Callback):
    """Stops after `patience` evaluations in a row without a better value of `metric`.

    Args:
        metric: `loss`, a name of `eval.metrics`, or of another number that the model returns.
        patience: Evaluations to wait for something better.
        mode: `min` or `max`; by default what the metric itself says (the loss: min).
        min_delta: By how much better it has to be.
    """

    def __init__(
        self, metric: str = "loss", patience: int = 3, mode: str | None = None, min_delta: float = 0.0
    ) -> None:
        if mode is not None and mode not in MODES:
            raise ConfigError(
                "mode", "wrong value", given=mode, allowed=MODES, suggestion=nearest(mode, MODES)
            )
        if patience < 1:
            raise ConfigError("patience", "wrong value", given=patience, allowed="1 or more evaluations")
        self.metric = metric
        self.patience = patience
        self.mode = mode
        self.min_delta = min_delta
        self.best: float | None = None
        self.waited = 0

    def on_start(self, run: Run) -> None:
        self.check_metrics(run.metrics)

    def check_metrics(self, metrics: Mapping[str, bool | None]) -> None:
        """Raises ConfigError where these, with whether higher is better, are none to stop by."""
        if self.metric not in metrics:
            raise ConfigError(
                "metric",
                "evaluation produces no such metric",
                given=self.metric,
                allowed=", ".join(metrics) or "none: the config has no `eval` with `data.val`",
                suggestion=nearest(self.metric, metrics),
            )
        if self.mode is None and metrics[self.metric] is None:
            problem = f"{self.metric} does not say whether higher is better"
            raise ConfigError("mode", problem, allowed=MODES)

    def on_eval(self, run: Run, row: dict[str, Any]) -> None:
        higher = MODES[self.mode] if self.mode else bool(run.metrics[self.metric])
        value = row["eval"][self.metric]
        if is_better(value, self.best, higher, by=self.min_delta):
            self.best, self.waited = value, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            what = "was never a number" if self.best is None else f"has not improved on {self.best:#.5g}"
            run.stop(f"{self.metric} {what} in {self.waited} evaluations")

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.waited = state["best"], state["waited"]
