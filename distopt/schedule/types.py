"""What the `type` of an entry of `param_scheduler` names, and its arguments."""

from __future__ import annotations

from distopt.config import SchedulerConfig, validate
from distopt.errors import ConfigError, nearest
from distopt.schedule.annealing import CosineAnnealing, CosineRestart, OneCycle, Poly, WarmupStableDecay
from distopt.schedule.plateau import ReduceOnPlateau
from distopt.schedule.shapes import Constant, Exponential, Linear, MultiStep, Shape, Step
from distopt.schedule.window import Cfg, check_times

SHAPES: dict[str, type[Shape]] = {
    shape.__name__: shape
    for shape in (
        Constant,
        Linear,
        Step,
        MultiStep,
        Exponential,
        CosineAnnealing,
        Poly,
        OneCycle,
        CosineRestart,
        ReduceOnPlateau,
        WarmupStableDecay,
    )
}
_SUFFIXES = ("LR", "Momentum", "ParamScheduler")
_LR_ALONE = ("OneCycle",)
TYPES = [
    shape + suffix for shape in SHAPES for suffix in (_SUFFIXES[:1] if shape in _LR_ALONE else _SUFFIXES)
]


def parse(key: str, cfg: Cfg) -> tuple[SchedulerConfig, str, Shape]:
    """The entry, the option that it moves, and its shape, in the units in which it was given.

    Raises:
        ConfigError: An unknown type; unknown, missing or wrong arguments; a part of a step or an epoch.
    """
    config = cfg if isinstance(cfg, SchedulerConfig) else validate(SchedulerConfig, cfg, key=key)
    name, suffix = _split(key, config.type)
    arguments = dict(config.arguments)
    param = {"LR": "lr", "Momentum": "momentum"}.get(suffix) or arguments.pop("param_name", None)
    if not isinstance(param, str):
        allowed = "the optimizer option to move, such as weight_decay"
        problem = "missing" if param is None else "wrong type"
        raise ConfigError(f"{key}.param_name", problem, allowed=allowed)
    shape = validate(SHAPES[name], arguments, key=key)
    check_times(key, config, shape)
    return config, param, shape


def _split(key: str, name: str) -> tuple[str, str]:
    for suffix in _SUFFIXES:
        shape = name.removesuffix(suffix)
        if shape != name and name in TYPES:
            return shape, suffix
    near = next((shape + "LR" for shape in _LR_ALONE if name.startswith(shape)), None) or nearest(name, TYPES)
    raise ConfigError(f"{key}.type", "unknown type", given=name, allowed=TYPES, suggestion=near)
