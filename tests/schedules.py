"""Optimizers to schedule, and the values that a schedule gives them."""

from __future__ import annotations

from typing import Any

import torch

from distopt import build_schedule

Values = list[float]
"""Of one option, by group."""


def optimizer(*lrs: float, cls: type[torch.optim.Optimizer] = torch.optim.SGD, **defaults: Any):
    """With one group for each of `lrs`, called g0, g1, …; its own lr is 0.1."""
    groups = [
        {"params": [torch.nn.Parameter(torch.zeros(1))], "name": f"g{i}", "lr": lr}
        for i, lr in enumerate(lrs or (0.1,))
    ]
    return cls(groups, lr=0.1, **defaults)


def entry(name: str, **arguments: Any) -> dict[str, Any]:
    """An entry of `param_scheduler` of type `name`: in steps, unless `by_epoch` is given."""
    return {"type": name, "by_epoch": False, **arguments}


def values(opt: torch.optim.Optimizer, param: str = "lr") -> Values:
    return [group["betas"][0] if param == "betas" else group[param] for group in opt.param_groups]


def curve(cfgs: Any, steps: int, opt: Any = None, param: str = "lr", **lengths: Any) -> list[Values]:
    """The values of `param` at each of the first `steps` steps."""
    opt = opt or optimizer()
    schedule = build_schedule(opt, cfgs, **lengths)
    all_values = []
    for step in range(steps):
        schedule.apply(step)
        all_values.append(values(opt, param))
    return all_values
