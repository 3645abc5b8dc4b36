"""Several optimizers that behave as one, each for its own groups: Muon for matrices, AdamW for the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from distopt.optim.modes import set_mode


class CompositeOptimizer(torch.optim.Optimizer):
    """Steps its parts in turn. Groups and state are the parts' own, seen as those of one optimizer.

    `param_groups` holds the very mappings that the parts step with, so a value that is set in one is used;
    `state` is one mapping that all parts share. A loop, a schedule, a gradient scaler and a checkpoint see
    nothing but a `torch.optim.Optimizer`; `state_dict` and `load_state_dict` are torch's.

    Args:
        parts: Each over other parameters; their groups have a `name`.
        order: The names of all groups, in the order in which `param_groups` is to have them.
        defaults: What an absolute `eta_min` of a schedule is relative to: those of the main optimizer.
    """

    def __init__(
        self, parts: Sequence[torch.optim.Optimizer], order: Sequence[str], defaults: Mapping[str, Any]
    ) -> None:
        self.parts = list(parts)
        named = {group["name"]: group for part in parts for group in part.param_groups}
        super().__init__([{"params": named[name]["params"]} for name in order], dict(defaults))
        self.param_groups = [named[name] for name in order]
        for part in parts:
            self.state.update(part.state)  # Adagrad has one from the beginning
        self._share()
        self._is_complete = True

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused: no part would step the group. Plan it, by a custom key."""
        if hasattr(self, "_is_complete"):
            raise RuntimeError("the groups of several optimizers are those of their plan")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Steps every part; `closure` is evaluated once, before the first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def train(self) -> None:
        """See `evaluating`."""
        for part in self.parts:
            set_mode(part, "train")

    def eval(self) -> None:
        """See `evaluating`."""
        for part in self.parts:
            set_mode(part, "eval")

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles."""
        return {**super().__getstate__(), "parts": self.parts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Called by `load_state_dict`, with new groups and new state."""
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        """Gives every part its own groups among `param_groups`, and the whole state."""
        named = {group["name"]: group for group in self.param_groups}
        for part in self.parts:
            own = [named[group["name"]] for group in part.param_groups]
            part.__setstate__({"state": self.state, "param_groups": own})
