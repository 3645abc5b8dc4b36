"""Layer-wise learning rates: the further from the output a layer is, the smaller its learning rate."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from distopt import names
from distopt.blocks import find_blocks
from distopt.config import OptimizerConfig
from distopt.errors import ConfigError
from distopt.optim.census import Census, Entry, Place
from distopt.optim.rules import DefaultOptimWrapperConstructor
from distopt.optim.verdict import Verdict

RATE = "optimizer.paramwise_cfg.layer_decay_rate"

Depth = tuple[int, int]
"""A layer's id, from 0, and the number of layers, as mmpretrain's `get_layer_depth` gives them."""


class LearningRateDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """The rules of `paramwise_cfg`, and `layer_decay_rate` once for each layer behind a parameter's own.

    Layers are those of the model's own `get_layer_depth(param_name, prefix)`, where it or a module of it
    has that method. Otherwise its repeated blocks are layers 1 … N; what stands before them in the model is
    layer 0, what stands behind them layer N + 1, and what stands between two belongs to the former.

    Raises:
        ConfigError: `layer_decay_rate` is missing; the model has no blocks; or its method does not return
            what it should.
    """

    def __init__(self, config: OptimizerConfig, census: Census) -> None:
        super().__init__(config, census)
        if config.paramwise.layer_decay_rate is None:
            raise ConfigError(RATE, "missing", allowed="a number > 0, such as 0.75")
        self.rate = config.paramwise.layer_decay_rate
        self.depths = _own_depths(census) or _depths_by_blocks(census.model)
        self._of_layer: dict[tuple[Verdict, Depth], Verdict] = {}

    def decide(self, entry: Entry, place: Place) -> Verdict:
        verdict = super().decide(entry, place)
        if verdict.key is not None and verdict.part is None and "lr" in self.custom_keys[verdict.key]:
            return verdict
        case = verdict, self.depths[place.fqn]
        if case not in self._of_layer:
            self._of_layer[case] = self._scaled(*case)
        return self._of_layer[case]

    def _scaled(self, verdict: Verdict, depth: Depth) -> Verdict:
        layer, layers = depth
        exponent = layers - 1 - layer
        scale = self.rate**exponent
        base = self.config.arguments["lr"]
        lr = verdict.options.get("lr", base) * scale
        factors = verdict.why.get("lr", f"{base:g}").partition(" = ")[0]
        return replace(
            verdict,
            label=f"layer{layer}.{verdict.label}" if verdict.rules else f"layer{layer}",
            rules=(f"layer{layer}", *verdict.rules),
            options={**verdict.options, "lr": lr},
            why={**verdict.why, "lr": f"{factors} × {scale:g} (layer_decay_rate ^ {exponent}) = {lr:g}"},
        )


def _depths_by_blocks(model: nn.Module) -> dict[str, Depth]:
    """FQN → its depth, from the order of the modules."""
    blocks = find_blocks(model)
    if not blocks:
        raise ConfigError(
            RATE,
            "the model has no layers: nothing in it is repeated",
            given=type(model).__name__,
            allowed="blocks of one class in a ModuleList, a Sequential or a numbered ModuleDict, or a method"
            " get_layer_depth(param_name, prefix) of the model's own",
        )
    layer, layers = 0, len(blocks) + 2
    depths = {}
    for visit in names.visits(model):
        if layer < len(blocks):
            layer += visit.prefix == blocks[layer].prefix
        elif layer == len(blocks):
            layer += not visit.prefix.startswith(blocks[-1].prefix)
        for name in visit.module._parameters:
            depths[visit.prefix + name] = layer, layers
    return depths


def _own_depths(census: Census) -> dict[str, Depth]:
    """FQN → its depth, by the methods of the outermost modules that have one; {} where none has."""
    methods: dict[str, Callable[..., Any]] = {}
    for visit in names.visits(census.model):
        method = getattr(visit.module, "get_layer_depth", None)
        if method is not None and not any(visit.prefix.startswith(prefix) for prefix in methods):
            # mmpretrain's classifiers, which are the root, take no prefix.
            takes_prefix = visit.prefix or len(inspect.signature(method).parameters) > 1
            methods[visit.prefix] = method if takes_prefix else _without_prefix(method)
    if not methods:
        return {}
    fqns = [place.fqn for _, place in census.places()]
    return {fqn: _own_depth(fqn, methods, census.model) for fqn in fqns}


def _without_prefix(method: Callable[[str], Any]) -> Callable[[str, str], Any]:
    return lambda fqn, prefix: method(fqn)


def _own_depth(fqn: str, methods: dict[str, Callable[..., Any]], model: nn.Module) -> Depth:
    """Asks the module around a parameter, or the first for what stands in none."""
    prefix = next((prefix for prefix in methods if fqn.startswith(prefix)), next(iter(methods)))
    match depth := methods[prefix](fqn, prefix):
        case (int(layer), int(layers)) if 0 <= layer < layers:
            return layer, layers
    raise ConfigError(
        "model",
        f"get_layer_depth({fqn!r}) of {type(model.get_submodule(prefix[:-1])).__name__} returned {depth!r}",
        allowed="a pair (layer_id, num_layers) with 0 ≤ layer_id < num_layers",
    )
