"""Building an optimizer's groups, and stepping them: against MMEngine, and against a group per tensor.

    python benchmarks/groups.py

MMEngine's constructor is timed where it is installed. All times are the best of several repetitions in one
process; the two sides of a ratio take turns.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from torch import nn

from distopt import build_optimizer, make_plan

CFG: dict[str, Any] = {
    "type": "AdamW",
    "lr": 1e-3,
    "weight_decay": 0.1,
    "paramwise_cfg": {
        "norm_decay_mult": 0,
        "bias_decay_mult": 0,
        "custom_keys": {"blocks.1.": {"lr_mult": 0.5}, "head": {"lr_mult": 10.0, "decay_mult": 0.0}},
    },
}
STEPS = 50


class Block(nn.Module):
    """Four small tensors: a matrix, its bias, and a norm's two."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)


class Net(nn.Module):
    """A model of `tensors` parameters."""

    def __init__(self, tensors: int, width: int = 4) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width) for _ in range(tensors // 4))
        self.head = nn.Linear(width, width)


def best(function: Callable[[], object], repetitions: int) -> float:
    """Seconds of the fastest call; the first, which imports and fills caches, is not counted."""
    function()
    times = []
    for _ in range(repetitions):
        start = perf_counter()
        function()
        times.append(perf_counter() - start)
    return min(times)


def planned(model: nn.Module) -> torch.optim.Optimizer:
    """Plan and bind, torch's own constructor included."""
    return build_optimizer(model, CFG, make_plan(model, CFG))


def by_torch(model: nn.Module) -> torch.optim.Optimizer:
    """One group of all."""
    return torch.optim.AdamW(model.parameters(), lr=CFG["lr"])


def by_mmengine(model: nn.Module) -> Any:
    """The same rules."""
    from mmengine.optim import DefaultOptimWrapperConstructor

    optimizer = {key: CFG[key] for key in ("type", "lr", "weight_decay")}
    return DefaultOptimWrapperConstructor({"optimizer": optimizer}, CFG["paramwise_cfg"])(model)


def building(tensors: int, repetitions: int, *, with_mmengine: bool) -> str:
    """A line of the table of building times, in milliseconds."""
    model = Net(tensors)
    ours, torchs = best(lambda: planned(model), repetitions), best(lambda: by_torch(model), repetitions)
    cells = [f"{tensors:,}", f"{1e3 * ours:.0f}", f"{1e6 * ours / tensors:.1f}", f"{1e3 * torchs:.0f}"]
    if with_mmengine:
        start = perf_counter()
        by_mmengine(model)
        theirs = perf_counter() - start
        cells += [f"{1e3 * theirs:,.0f}", f"{theirs / ours:.0f} ×"]
    else:
        cells += ["-", "-"]
    return f"| {' | '.join(cells)} |"


def _per_tensor(model: nn.Module) -> torch.optim.Optimizer:
    """The same values, a group for each tensor."""
    merged = build_optimizer(model, {**CFG, "fused": True})
    groups = [
        {**{key: value for key, value in group.items() if "param" not in key}, "params": [parameter]}
        for group in merged.param_groups
        for parameter in group["params"]
    ]
    return torch.optim.AdamW(groups, fused=True)


def _give_gradients(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def _seconds(function: Callable[[], object]) -> float:
    start = perf_counter()
    function()
    return perf_counter() - start


def stepping(tensors: int) -> str:
    """A line of the table of optimizer steps, in milliseconds; proves that both give the same bits."""
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(Net(tensors, width=8))
        _give_gradients(models[-1])
    merged = build_optimizer(models[0], {**CFG, "fused": True})
    apart = _per_tensor(models[1])
    turns = [(_seconds(merged.step), _seconds(apart.step)) for _ in range(STEPS)]
    times = [min(column) for column in zip(*turns, strict=True)]
    for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(ours, theirs)
        for key, value in merged.state[ours].items():
            assert torch.equal(value, apart.state[theirs][key])
    ratio = times[1] / times[0]
    groups = len(merged.param_groups), len(apart.param_groups)
    cells = f"{tensors:,}", *(f"{n:,}" for n in groups), *(f"{1e3 * t:.2f}" for t in times), f"{ratio:.1f} ×"
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=7)
    repetitions = parser.parse_args().repetitions
    logging.disable(logging.INFO)  # MMEngine writes a line or more for each tensor
    has_mmengine = importlib.util.find_spec("mmengine") is not None
    torch.set_num_threads(1)
    print("| tensors | distopt ms | µs per tensor | torch's own, one group, ms | MMEngine ms | ratio |")
    print("| --- | --- | --- | --- | --- | --- |")
    print(building(1_000, repetitions, with_mmengine=has_mmengine), flush=True)
    print(building(10_000, repetitions, with_mmengine=has_mmengine), flush=True)
    print(building(200_000, 2, with_mmengine=False), flush=True)
    print(
        "\n| tensors | groups, merged | a group per tensor | step ms, merged | a group per tensor | ratio |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    print(stepping(2_000))


if __name__ == "__main__":
    main()
