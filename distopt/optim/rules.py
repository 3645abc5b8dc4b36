"""The rules of `paramwise_cfg`: one verdict for each parameter.

The vocabulary and its meaning are MMEngine's (`DefaultOptimWrapperConstructor`); docs/coming-from-mmengine.md
has the deviations. Rules see clean FQNs, module types and global shapes, never what a wrapper made of them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from torch import nn

from distopt import registry
from distopt.config import OptimizerConfig
from distopt.config.optimizer import KEY_SETTINGS, MULTIPLIES
from distopt.errors import ConfigError
from distopt.optim.arguments import own_default
from distopt.optim.census import Census, Entry, Place
from distopt.optim.hidden import hidden_matrices, is_matrix_optimizer
from distopt.optim.verdict import Constructor, Verdict

_TORCH_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
)
_NORM_NAME = re.compile(r"(rms|layer)_?norm(\dd)?$", re.IGNORECASE)
CUSTOM_KEYS = "optimizer.paramwise_cfg.custom_keys"


class DefaultOptimWrapperConstructor(Constructor):
    """`paramwise_cfg` as MMEngine means it."""

    def __init__(self, config: OptimizerConfig, census: Census) -> None:
        super().__init__(config, census)
        paramwise = config.paramwise
        self.custom_keys = paramwise.custom_keys
        self.multipliers = {
            name: value
            for name, value in paramwise.model_dump().items()
            if name.endswith("_mult") and value is not None
        }
        """Those that are given: `norm_decay_mult` → its value."""
        self.combines = paramwise.custom_keys_mode == "combine"
        self._keys = sorted(sorted(paramwise.custom_keys), key=len, reverse=True)
        self._patterns = {key: match for key in self._keys if (match := pattern(key))}
        self._matching: dict[str, list[str]] = {}
        self._hidden_only = {
            key
            for key, entry in paramwise.custom_keys.items()
            if entry.get("hidden_only", is_matrix_optimizer(entry.get("type", "")))
        }
        self._norms, self._norms_by_name = _norm_types(paramwise.norm_types)
        self._given: dict[tuple[Any, ...], tuple[str | None, str | None]] = {}
        self._verdicts: dict[tuple[str | None, ...], Verdict] = {}
        self._hidden = hidden_matrices(census, self.is_norm) if self._hidden_only else frozenset()

    def decide(self, entry: Entry, place: Place) -> Verdict:
        keys = self.matching_keys(place)
        key = keys[0] if keys else None
        if key is not None and not self.combines:
            return self._verdict(key, None, None)
        return self._verdict(key, *self._given_for(entry, place))

    def matching_keys(self, place: Place) -> list[str]:
        """The custom keys that are for a place, the deciding one first: longest, then alphabetically."""
        keys = self._keys_in(place)
        if self._hidden_only and place.fqn not in self._hidden:
            return [key for key in keys if key not in self._hidden_only]
        return keys

    def passed_over(self, place: Place) -> list[str]:
        """The custom keys that match a name, and are for hidden matrices only, which this is not."""
        return [key for key in self._keys_in(place) if key not in self.matching_keys(place)]

    def _keys_in(self, place: Place) -> list[str]:
        fqn = place.fqn
        if fqn not in self._matching:
            text = fqn if place.holder.prefix else f".{fqn}"
            self._matching[fqn] = [
                key
                for key in self._keys
                if (self._patterns[key](fqn) if key in self._patterns else key in text)
            ]
        return self._matching[fqn]

    def is_norm(self, entry: Entry, place: Place) -> bool:
        """By the class of its module; by the class's name only what is shaped like a norm's parameter."""
        owner = place.holder.cls
        by_name = self._norms_by_name and len(entry.shape) <= 1
        return issubclass(owner, self._norms) or (
            by_name and any(_NORM_NAME.search(base.__name__) for base in owner.__mro__)
        )

    def applies(self, entry: Entry, place: Place) -> dict[str, bool]:
        """Whether each multiplier is for this kind of parameter, given or not; the first wins."""
        _, owner, parent, depthwise, _ = place.holder
        in_deformable = _is_deformable(parent)
        is_offset = in_deformable and "conv_offset" in place.holder.path and issubclass(owner, nn.Conv2d)
        is_norm, ndim = self.is_norm(entry, place), len(entry.shape)
        is_bias = place.name == "bias" and not in_deformable
        return {
            "dcn_offset_lr_mult": is_offset,
            "bias_lr_mult": is_bias and not is_norm,
            "norm_decay_mult": is_norm,
            "bias_decay_mult": is_bias,
            "dwconv_decay_mult": depthwise,
            "flat_decay_mult": ndim == 1 and not in_deformable,
        }

    def _given_for(self, entry: Entry, place: Place) -> tuple[str | None, str | None]:
        """The multipliers of lr and weight decay that decide. The same for all parameters of a kind."""
        prefix, owner, parent, depthwise, _ = place.holder
        in_offset = "conv_offset" in prefix
        kind = (owner, parent, depthwise, place.name == "bias", len(entry.shape), in_offset)
        if kind not in self._given:
            given = [name for name, is_for in self.applies(entry, place).items() if is_for]
            given = [name for name in given if name in self.multipliers]
            self._given[kind] = (
                next((name for name in given if name.endswith("_lr_mult")), None),
                next((name for name in given if name.endswith("_decay_mult")), None),
            )
        return self._given[kind]

    def _verdict(self, *case: str | None) -> Verdict:
        if case not in self._verdicts:
            self._verdicts[case] = self._make_verdict(*case)
        return self._verdicts[case]

    def _make_verdict(self, key: str | None, lr_mult: str | None, decay_mult: str | None) -> Verdict:
        entry = self.custom_keys[key] if key is not None else {}
        part = key if "type" in entry else None
        sets_lr = "lr" in entry and not part
        lr_mult = None if sets_lr else lr_mult
        decay_mult = None if "weight_decay" in entry and not part else decay_mult
        options = {name: value for name, value in entry.items() if name not in (*KEY_SETTINGS, "type")}
        why = {name: f"{value} (custom_keys)" for name, value in options.items()}
        bases = {name: self.config.arguments.get(name) for name in MULTIPLIES.values() if name not in entry}
        if part:  # an optimizer of its own has base values of its own
            unset = {name: own_default(entry["type"], name) for name in bases}
            unset = {name: value for name, value in unset.items() if value is not None}
            why = {name: f"{value} ({entry['type']}'s default)" for name, value in unset.items()} | why
            options = unset | options
            bases = dict(options)
        for (mult, option), of_kind in zip(MULTIPLIES.items(), (lr_mult, decay_mult), strict=True):
            factors = {mult: entry[mult]} if mult in entry else {}
            if of_kind is not None:
                factors[of_kind] = self.multipliers[of_kind]
            base = bases.get(option)
            if factors and base is not None:
                value = base
                for factor in factors.values():
                    value *= factor
                terms = "".join(f" × {factor:g} ({name})" for name, factor in factors.items())
                options[option], why[option] = value, f"{base:g}{terms} = {value:g}"
        kinds = [of_kind.rsplit("_", 2)[0] for of_kind in (lr_mult, decay_mult) if of_kind is not None]
        kinds = list(dict.fromkeys(kinds))
        own = [] if key is None else [key]
        # The biases of norms, beside those that bias_lr_mult is for, too.
        decay_only = lr_mult is None and decay_mult == "bias_decay_mult" and not sets_lr
        short = ["bias_decay"] if decay_only and "bias_lr_mult" in self.multipliers else kinds
        label = ".".join([str(entry.get("name", name)) for name in own] + short) or "default"
        return Verdict(label, (*own, *kinds), options, why, key, part)


def pattern(key: str) -> Callable[[str], object] | None:
    """Whether an FQN matches a key that is marked as a pattern; None for a key that is not."""
    kind, colon, text = key.partition(":")
    if kind not in ("re", "glob") or not colon:
        return None
    if not text:
        raise ConfigError(f"{CUSTOM_KEYS}.{key}", "an empty pattern", allowed=f"{kind}:PATTERN")
    if kind == "glob":
        return partial(fnmatchcase, pat=text)
    try:
        return re.compile(text).search
    except re.error as error:
        raise ConfigError(f"{CUSTOM_KEYS}.{key}", f"no regular expression: {error}") from error


def _norm_types(setting: str | list[str]) -> tuple[tuple[type[nn.Module], ...], bool]:
    """The norm classes, and whether a class is one by its name too (`LlamaRMSNorm`, `T5LayerNorm`)."""
    if setting == "mmengine":
        return _TORCH_NORMS, False
    extra = () if setting == "auto" else setting
    key = "optimizer.paramwise_cfg.norm_types"
    classes: list[Any] = [registry.resolve(path, "module", f"{key}.{i}") for i, path in enumerate(extra)]
    return (*_TORCH_NORMS, nn.RMSNorm, *classes), True


def _is_deformable(cls: type[nn.Module] | None) -> bool:
    """Looked up at each call and never imported: a model that has such a module has imported it."""
    if cls is None:
        return False
    homes = {"mmcv.ops": ("DeformConv2d", "ModulatedDeformConv2d"), "torchvision.ops": ("DeformConv2d",)}
    loaded = ((sys.modules.get(home), classes) for home, classes in homes.items())
    found = (getattr(module, name, None) for module, classes in loaded if module for name in classes)
    return any(isinstance(candidate, type) and issubclass(cls, candidate) for candidate in found)
