"""Schedules against MMEngine's and torch's own, step by step.

An absolute `eta_min` is compared in single groups, or as a list with one value for each group: a number is
the optimizer's and scales with the group's lr here, which is one of distopt's deliberate deviations.
"""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler as torchs

from distopt import build_schedule
from distopt.config.document import parse
from distopt.schedule.types import SHAPES
from tests.schedules import Values, curve, entry, optimizer, values

STEPS, EPOCH = 60, 3
LRS = (0.1, 0.03)


def same(ours: list[Values], theirs: list[Values]) -> None:
    assert len(ours) == len(theirs)
    for step, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        assert our == pytest.approx(their, rel=1e-9, abs=1e-15), f"step {step}"


@pytest.fixture(scope="module")
def schedulers() -> Any:
    """Builds MMEngine's scheduler from an entry, as its runner does."""
    pytest.importorskip("mmengine.optim", reason="mmengine-lite is not here", exc_type=ImportError)
    registry = sys.modules["mmengine.registry"].PARAM_SCHEDULERS

    def build(opt: torch.optim.Optimizer, cfg: dict[str, Any]) -> Any:
        return registry.build(dict(cfg), default_args={"optimizer": opt, "epoch_length": EPOCH})

    return build


def mmengines(schedulers: Any, cfgs: list, opt: torch.optim.Optimizer, param: str = "lr") -> list[Values]:
    built = [schedulers(opt, cfg) for cfg in cfgs]
    all_values = []
    for step in range(STEPS):
        all_values.append(values(opt, param))
        opt.step()
        for scheduler in built:
            if not scheduler.by_epoch or (step + 1) % EPOCH == 0:
                scheduler.step()
    return all_values


ONE_CYCLE = {"eta_max": [0.2, 0.05], "total_steps": STEPS}
BY_STEP = {
    "constant": [entry("ConstantLR", factor=0.5, end=5)],
    "constant, default factor": [entry("ConstantLR", end=9)],
    "constant, later": [entry("ConstantLR", factor=0.1, begin=7, end=11)],
    "constant, without end": [entry("ConstantLR", factor=0.2)],
    "linear": [entry("LinearLR", start_factor=0.01, end=20)],
    "linear, defaults": [entry("LinearLR", end=30)],
    "linear, down": [entry("LinearLR", start_factor=1, end_factor=0.05, end=STEPS)],
    "linear, later": [entry("LinearLR", start_factor=0.25, end_factor=0.75, begin=10, end=41)],
    "linear, two steps": [entry("LinearLR", start_factor=0.25, begin=4, end=6)],
    "step": [entry("StepLR", step_size=7)],
    "step, later": [entry("StepLR", step_size=5, gamma=0.5, begin=8, end=40)],
    "step, upwards": [entry("StepLR", step_size=25, gamma=1.5)],
    "milestones": [entry("MultiStepLR", milestones=[20, 40, 50])],
    "milestones, repeated": [entry("MultiStepLR", milestones=[10, 10, 10, 30, 30], gamma=0.7)],
    "milestones, later": [entry("MultiStepLR", milestones=[0, 10, 45], gamma=0.3, begin=9, end=50)],
    "exponential": [entry("ExponentialLR", gamma=0.9)],
    "exponential, later": [entry("ExponentialLR", gamma=0.95, begin=20, end=45)],
    "cosine": [entry("CosineAnnealingLR", T_max=STEPS)],
    "cosine, of its window": [entry("CosineAnnealingLR", begin=10, end=50, eta_min_ratio=0.02)],
    "cosine, rises again": [entry("CosineAnnealingLR", T_max=13, eta_min_ratio=0.1)],
    "cosine, broken off": [entry("CosineAnnealingLR", T_max=40, begin=5, end=25)],
    "cosine, absolute": [entry("CosineAnnealingLR", T_max=50, eta_min=0.004)],
    "poly": [entry("PolyLR", end=STEPS)],
    "poly, power below 1": [entry("PolyLR", power=0.9, end=50)],
    "poly, power above 1": [entry("PolyLR", power=2.5, begin=12, end=STEPS)],
    "poly, absolute": [entry("PolyLR", power=2, eta_min=0.001, end=45)],
    "one cycle": [entry("OneCycleLR", **ONE_CYCLE)],
    "one cycle, linear": [entry("OneCycleLR", **ONE_CYCLE, anneal_strategy="linear")],
    "one cycle, three phases": [entry("OneCycleLR", **ONE_CYCLE, three_phase=True, pct_start=0.35)],
    "one cycle, of its window": [entry("OneCycleLR", eta_max=[0.1, 0.3], begin=10, end=45, div_factor=5.0)],
    "restart": [
        entry("CosineRestartLR", periods=[10, 20, 30], restart_weights=[1, 0.5, 0.25], eta_min_ratio=0)
    ],
    "restart, later": [
        entry("CosineRestartLR", periods=[15, 15], restart_weights=[1, 0.7], eta_min_ratio=0.1, begin=9)
    ],
    "restart, absolute": [
        entry("CosineRestartLR", periods=[25, 35], restart_weights=[0.8, 0.4], eta_min=0.001)
    ],
    "warm-up, cosine": [
        entry("LinearLR", start_factor=0.01, end=10),
        entry("CosineAnnealingLR", begin=10, end=STEPS, eta_min_ratio=0.05),
    ],
    "warm-up, poly": [
        entry("LinearLR", start_factor=1e-6, end=15),
        entry("PolyLR", power=1, begin=15, end=STEPS),
    ],
    "warm-up inside milestones by epoch": [
        entry("LinearLR", start_factor=0.001, end=8),
        entry("MultiStepLR", by_epoch=True, milestones=[8, 11], end=12),
    ],
    "overlapping": [entry("ExponentialLR", gamma=0.97), entry("LinearLR", start_factor=0.1, begin=5, end=25)],
}
BY_EPOCH = {
    "constant": [entry("ConstantLR", factor=0.5, end=4)],
    "linear": [entry("LinearLR", start_factor=0.1, begin=1, end=6)],
    "step": [entry("StepLR", step_size=4, gamma=0.5)],
    "milestones": [entry("MultiStepLR", milestones=[3, 8, 8, 15], begin=2)],
    "exponential": [entry("ExponentialLR", gamma=0.9, begin=2, end=12)],
    "cosine": [entry("CosineAnnealingLR", T_max=7, eta_min_ratio=0.01)],
    "cosine, of its window": [entry("CosineAnnealingLR", begin=3, end=18)],
    "poly": [entry("PolyLR", power=0.9, begin=3, end=20)],
    "one cycle": [entry("OneCycleLR", eta_max=[0.1, 0.2], total_steps=STEPS // EPOCH)],
    "restart": [entry("CosineRestartLR", periods=[5, 15], restart_weights=[1, 0.5], eta_min_ratio=0.1)],
}
OTHERS = {
    "constant": entry("Constant", factor=0.5, end=10),
    "linear": entry("Linear", start_factor=0.9, begin=5, end=40),
    "step": entry("Step", step_size=20, gamma=0.9),
    "milestones": entry("MultiStep", milestones=[10, 30, 30], gamma=0.9),
    "exponential": entry("Exponential", gamma=0.99),
    "cosine": entry("CosineAnnealing", T_max=40, eta_min_ratio=0.5),
    "poly": entry("Poly", power=0.5, end=50),
    "restart": entry("CosineRestart", periods=[20, 40], restart_weights=[1, 0.9], eta_min_ratio=0.5),
}


def groups(cfgs: list) -> torch.optim.Optimizer:
    """Two groups, or one where an absolute value is given as a number."""
    return optimizer(*LRS[:1] if any(isinstance(cfg.get("eta_min"), float) for cfg in cfgs) else LRS)


@pytest.mark.parametrize("cfgs", BY_STEP.values(), ids=BY_STEP)
def test_entries_by_step_are_mmengines(cfgs, schedulers):
    same(curve(cfgs, STEPS, groups(cfgs), steps_per_epoch=EPOCH), mmengines(schedulers, cfgs, groups(cfgs)))


@pytest.mark.parametrize("how", [{}, {"convert_to_iter_based": True}], ids=["by epoch", "converted"])
@pytest.mark.parametrize("cfgs", BY_EPOCH.values(), ids=BY_EPOCH)
def test_entries_by_epoch_are_mmengines(cfgs, how, schedulers):
    cfgs = [{**cfg, "by_epoch": True, **how} for cfg in cfgs]
    same(curve(cfgs, STEPS, groups(cfgs), steps_per_epoch=EPOCH), mmengines(schedulers, cfgs, groups(cfgs)))


@pytest.mark.parametrize("cfg", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize(
    ("suffix", "param", "cls", "defaults"),
    [
        ("Momentum", "momentum", torch.optim.SGD, {"momentum": 0.9}),
        ("Momentum", "betas", torch.optim.AdamW, {"betas": (0.8, 0.99)}),
        ("ParamScheduler", "weight_decay", torch.optim.AdamW, {"weight_decay": 0.05}),
        ("ParamScheduler", "eps", torch.optim.AdamW, {"eps": 1e-3}),
    ],
    ids=["momentum", "betas", "weight_decay", "eps"],
)
def test_other_options_than_lr_are_mmengines(cfg, suffix, param, cls, defaults, schedulers):
    cfg = {**cfg, "type": cfg["type"] + suffix}
    if suffix == "ParamScheduler":
        cfg["param_name"] = param
    theirs = mmengines(schedulers, [cfg], optimizer(cls=cls, **defaults), param)
    same(curve(cfg, STEPS, optimizer(cls=cls, **defaults), param), theirs)


def sequential(opt: torch.optim.Optimizer, *parts: Any) -> torchs.SequentialLR:
    """Of schedulers, and of the steps at which the next one takes over, in turn."""
    return torchs.SequentialLR(opt, [part(opt) for part in parts[::2]], milestones=list(parts[1::2]))


def linear(*args: Any, **kwargs: Any) -> Any:
    return lambda opt: torchs.LinearLR(opt, *args, **kwargs)


def cosine(*args: Any, **kwargs: Any) -> Any:
    return lambda opt: torchs.CosineAnnealingLR(opt, *args, **kwargs)


def flat(opt: torch.optim.Optimizer) -> torchs.LRScheduler:
    return torchs.LambdaLR(opt, lambda step: 1.0)


WSD = {"warmup": 10, "decay": 15, "end": STEPS}
TORCH = {
    "ConstantLR": ([entry("ConstantLR", factor=0.4, end=13)], lambda o: torchs.ConstantLR(o, 0.4, 12)),
    "LinearLR": ([entry("LinearLR", end=6)], linear(1 / 3, 1.0, 5)),
    "LinearLR, down": ([entry("LinearLR", start_factor=1, end_factor=0.1, end=60)], linear(1.0, 0.1, 59)),
    "StepLR": ([entry("StepLR", step_size=8, gamma=0.3)], lambda o: torchs.StepLR(o, 8, 0.3)),
    "MultiStepLR": (
        [entry("MultiStepLR", milestones=[5, 30, 30, 31], gamma=0.5)],
        lambda o: torchs.MultiStepLR(o, [5, 30, 30, 31], 0.5),
    ),
    "ExponentialLR": ([entry("ExponentialLR", gamma=0.93)], lambda o: torchs.ExponentialLR(o, 0.93)),
    "CosineAnnealingLR": ([entry("CosineAnnealingLR", T_max=60, eta_min=[1e-3] * 2)], cosine(60, 1e-3)),
    "CosineAnnealingLR, rises again": ([entry("CosineAnnealingLR", T_max=20)], cosine(20)),
    "PolynomialLR": ([entry("PolyLR", end=51)], lambda o: torchs.PolynomialLR(o, 50)),
    "PolynomialLR, power 2": ([entry("PolyLR", power=2, end=51)], lambda o: torchs.PolynomialLR(o, 50, 2)),
    "CosineAnnealingWarmRestarts": (
        [entry("CosineRestartLR", periods=[20] * 3, restart_weights=[1] * 3)],
        lambda o: torchs.CosineAnnealingWarmRestarts(o, 20),
    ),
    "CosineAnnealingWarmRestarts, longer and longer": (
        [entry("CosineRestartLR", periods=[8, 16, 32, 64], restart_weights=[1] * 4, eta_min=[1e-3] * 2)],
        lambda o: torchs.CosineAnnealingWarmRestarts(o, 8, 2, eta_min=1e-3),
    ),
    "LambdaLR": (
        [entry("LinearLR", start_factor=0.1, end=11), entry("PolyLR", power=3, begin=10, end=STEPS)],
        lambda o: torchs.LambdaLR(o, lambda k: 0.1 + 0.09 * k if k < 10 else ((59 - k) / 49) ** 3),
    ),
    "MultiplicativeLR": (
        [entry("ExponentialLR", gamma=0.98, begin=30, end=STEPS)],
        lambda o: torchs.MultiplicativeLR(o, lambda k: 0.98 if k > 30 else 1.0),
    ),
    "CyclicLR, one triangle": (
        [
            entry("LinearLR", start_factor=0.2, end=21),
            entry("LinearLR", start_factor=1, end_factor=0.2, begin=20, end=61),
        ],
        lambda o: torchs.CyclicLR(o, [0.02, 0.006], list(LRS), 20, 40),
    ),
    "SequentialLR, warm-up and cosine": (
        [
            entry("LinearLR", start_factor=0.01, end=10),
            entry("CosineAnnealingLR", begin=10, end=STEPS, eta_min=[1e-4, 1e-4]),
        ],
        lambda o: sequential(o, linear(0.01, 1.0, 9), 10, cosine(50, eta_min=1e-4)),
    ),
    "SequentialLR, constant and exponential": (
        [entry("ConstantLR", factor=0.1, end=6), entry("ExponentialLR", gamma=0.9, begin=5)],
        lambda o: sequential(
            o, lambda o: torchs.ConstantLR(o, 0.1, 9), 5, lambda o: torchs.ExponentialLR(o, 0.9)
        ),
    ),
    "SequentialLR, WSD": (
        [entry("WarmupStableDecayLR", lo=0.1, **WSD)],
        lambda o: sequential(o, linear(0.1, 1.0, 9), 10, flat, 45, linear(1.0, 0.1, 15)),
    ),
    "SequentialLR, WSD with a cosine": (
        [entry("WarmupStableDecayLR", decay_type="cosine", **WSD)],
        lambda o: sequential(o, linear(0.1, 1.0, 9), 10, flat, 45, cosine(15)),
    ),
    "LambdaLR, WSD with a root": (
        [entry("WarmupStableDecayLR", decay_type="sqrt", **WSD)],
        lambda o: torchs.LambdaLR(o, lambda k: min((k + 1) / 10, 1, 1 - math.sqrt(max(k - 45, 0) / 15))),
    ),
    "ChainedScheduler, warm-up and exponential": (
        [entry("LinearLR", start_factor=0.1, end=10), entry("ExponentialLR", gamma=0.95)],
        lambda o: torchs.ChainedScheduler([linear(0.1, 1.0, 9)(o), torchs.ExponentialLR(o, 0.95)], o),
    ),
    "ChainedScheduler, constant and milestones": (
        [entry("ConstantLR", factor=0.5, end=8), entry("MultiStepLR", milestones=[20, 40])],
        lambda o: torchs.ChainedScheduler([torchs.ConstantLR(o, 0.5, 7), torchs.MultiStepLR(o, [20, 40])], o),
    ),
}
CYCLES = {
    "defaults": {},
    "linear": {"anneal_strategy": "linear"},
    "three phases": {"three_phase": True},
    "three phases, linear": {"three_phase": True, "anneal_strategy": "linear", "pct_start": 0.4},
    "up at once": {"pct_start": 0.0},
    "up all the time": {"pct_start": 1.0},
    "from where it ends": {"div_factor": 10.0, "final_div_factor": 1.0, "pct_start": 0.1},
}


def torch_curve(make: Any, opt: torch.optim.Optimizer, clock: int = 1) -> list[Values]:
    scheduler = make(opt)
    all_values = [values(opt)]
    for step in range(1, STEPS):
        opt.step()
        if step % clock == 0:
            scheduler.step()
        all_values.append(values(opt))
    return all_values


@pytest.mark.filterwarnings("ignore:.*epoch parameter:UserWarning")
@pytest.mark.parametrize("clock", [1, EPOCH], ids=["by step", "by epoch"])
@pytest.mark.parametrize(("cfgs", "make"), TORCH.values(), ids=TORCH)
def test_entries_are_torchs(cfgs, make, clock):
    cfgs = [{**cfg, "by_epoch": clock > 1} for cfg in cfgs]
    opt = optimizer(*LRS, momentum=0.9)
    theirs = torch_curve(make, optimizer(*LRS, momentum=0.9), clock)
    same(curve(cfgs, STEPS, opt, steps_per_epoch=clock), theirs)


@pytest.mark.parametrize("arguments", CYCLES.values(), ids=CYCLES)
def test_one_cycle_is_torchs(arguments):
    opt = optimizer(*LRS, momentum=0.9)
    theirs = torch_curve(
        lambda o: torchs.OneCycleLR(o, [0.2, 0.05], STEPS, cycle_momentum=False, **arguments),
        optimizer(*LRS, momentum=0.9),
    )
    same(curve(entry("OneCycleLR", **ONE_CYCLE, **arguments), STEPS, opt), theirs)


PAGE = (Path(__file__).parents[1] / "docs/schedule.md").read_text()
TABLE = dict(re.findall(r"^\| `(\w+\(opt.*|ChainedScheduler\(.*)` \| (.*) \|$", PAGE, re.M))


def test_the_page_has_every_scheduler_of_torch():
    theirs = {name for name in torchs.__all__ if name != "LRScheduler"}
    assert {call.partition("(")[0] for call in TABLE} == theirs


def test_the_page_has_every_shape():
    assert [f"| `{name}LR` |" for name in SHAPES if f"| `{name}LR` |" not in PAGE] == []


@pytest.mark.filterwarnings("ignore:.*epoch parameter:UserWarning")
@pytest.mark.parametrize("call", TABLE)
def test_a_line_of_the_page_is_torchs(call):
    cfgs = [
        {**parse(cfg, "line")[0], "by_epoch": False} for cfg in re.findall(r"`(\{type.*?\})`", TABLE[call])
    ]
    steps = 41 if call.startswith("CyclicLR") else 100
    opt, theirs_opt = optimizer(), optimizer()
    schedule, scheduler = build_schedule(opt, cfgs), eval(call, {**vars(torchs), "opt": theirs_opt})
    for step in range(steps):
        schedule.apply(step)
        assert values(opt) == pytest.approx(values(theirs_opt), rel=1e-9, abs=1e-15), f"step {step}"
        theirs_opt.step()
        if isinstance(scheduler, torchs.ReduceLROnPlateau):
            schedule.observe({"loss": 1.0})
            scheduler.step(1.0)
        elif step < steps - 1:
            scheduler.step()
