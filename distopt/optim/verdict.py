"""The verdict: what was decided for a parameter; and the interface of what decides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from distopt.config import OptimizerConfig
from distopt.optim.census import Census, Entry, Place


@dataclass(frozen=True, eq=False)
class Verdict:
    """What was decided for a parameter, by which rules, and how.

    Parameters with verdicts of the same label, rules, options and part are one group.
    """

    label: str
    """What the group is called, before clashes are resolved."""
    rules: tuple[str, ...] = ()
    """The names of the rules that decided; () where none did."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Optimizer options that differ from the optimizer's own: lr, weight_decay, betas, …"""
    why: Mapping[str, str] = field(default_factory=dict)
    """Option → its arithmetic: `0.0006 × 0.1 (bias_lr_mult) = 6e-05`."""
    key: str | None = None
    """The custom key that decided, if one did."""
    part: str | None = None
    """The custom key whose own optimizer steps it; None for that of the `optimizer` section."""

    def over(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """All options: those of the optimizer section where nothing else was decided."""
        return dict(self.options) if self.part else {**defaults, **self.options}

    def __str__(self) -> str:
        """`head (lr 0.01, weight_decay 0)`."""
        values = {k: f"{v:g}" if isinstance(v, float) else v for k, v in self.options.items()}
        options = ", ".join(f"{name} {value}" for name, value in values.items())
        return f"{self.label} ({options})" if options else self.label


class Constructor(ABC):
    """Decides what each parameter gets: `optimizer.constructor` names a class of this kind.

    It sees the census, never the wrapped model, so what it decides is the same whatever wraps the model.

    Args:
        config: The `optimizer` section; `config.arguments` are the optimizer's own, `config.paramwise` the
            rules, a constructor's own keys among them.
        census: All parameters of the model.
    """

    def __init__(self, config: OptimizerConfig, census: Census) -> None:
        self.config = config
        self.census = census

    @abstractmethod
    def decide(self, entry: Entry, place: Place) -> Verdict:
        """The verdict on a parameter, were `place` the first of its names."""
