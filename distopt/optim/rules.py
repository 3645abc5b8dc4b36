"""The rules of `paramwise_cfg`: one verdict for each parameter.

The vocabulary and its meaning are MMEngine's (`DefaultOptimWrapperConstructor`); docs/groups.md has the
deviations. Rules see clean FQNs, module types and global shapes, never what a wrapper made of them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

from torch import nn

from distopt import registry
from distopt.config import OptimizerConfig, ParamwiseConfig
from distopt.errors import ConfigError
from distopt.optim.census import Entry, Place

_TORCH_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
)
_NORM_NAME = re.compile(r"(rms|layer)_?norm(\dd)?$", re.IGNORECASE)
_MULTIPLIERS = {"lr_mult": "lr", "decay_mult": "weight_decay"}
CUSTOM_KEYS = "optimizer.paramwise_cfg.custom_keys"
KEY_SETTINGS = (*_MULTIPLIERS, "name")
"""What an entry of `custom_keys` may hold besides options of the optimizer."""


@dataclass(frozen=True, eq=False)
class Verdict:
    """What was decided for a parameter, by which rules, and how. `Rules` makes each distinct one once."""

    key: str | None
    """The custom key that decided, if one did."""
    rules: tuple[str, ...]
    """That key, and the short names of the other rules that decided; () where none did."""
    label: str
    """What the group is called, before clashes are resolved."""
    options: Mapping[str, Any]
    """Optimizer options that differ from the optimizer's own: lr, weight_decay, betas, …"""
    why: Mapping[str, str]
    """Option → its arithmetic: `0.0006 × 0.1 (bias_lr_mult) = 6e-05`."""


class Rules:
    """The rules of one `optimizer:` section, ready to decide."""

    def __init__(self, config: OptimizerConfig) -> None:
        paramwise = config.paramwise_cfg or ParamwiseConfig()
        _check_patterns(paramwise.custom_keys)
        self.custom_keys = paramwise.custom_keys
        self._base = {option: config.arguments.get(option) for option in ("lr", "weight_decay")}
        self._combine = paramwise.custom_keys_mode == "combine"
        self._multipliers = {
            name: value
            for name, value in paramwise.model_dump().items()
            if name.endswith("_mult") and value is not None
        }
        self._keys = sorted(sorted(paramwise.custom_keys), key=len, reverse=True)
        self._norms, self._norms_by_name = _norm_types(paramwise.norm_types)
        self._verdicts: dict[tuple[str | None, str | None, str | None], Verdict] = {}

    def decide(self, entry: Entry, place: Place) -> Verdict:
        """The verdict on `entry`, were `place` its owner."""
        key = next(self.matching_keys(place), None)
        if key is not None and not self._combine:
            return self._verdict(key, None, None)
        ndim = len(entry.shape)
        return self._verdict(key, self._lr_rule(place, ndim), self._decay_rule(place, ndim))

    def matching_keys(self, place: Place) -> Iterator[str]:
        """The custom keys that match, the deciding one first: longest, then alphabetically."""
        text = f"{place.path}.{place.name}"
        return (key for key in self._keys if _matches(key, text, place.fqn))

    def _is_norm(self, place: Place, ndim: int) -> bool:
        """By the owner's class; by its name only what is shaped like a norm's parameter."""
        by_name = self._norms_by_name and ndim <= 1
        return issubclass(place.owner, self._norms) or (
            by_name and any(_NORM_NAME.search(base.__name__) for base in place.owner.__mro__)
        )

    def _lr_rule(self, place: Place, ndim: int) -> str | None:
        in_deformable = _is_deformable(place.parent)
        if (
            "dcn_offset_lr_mult" in self._multipliers
            and in_deformable
            and "conv_offset" in place.path
            and issubclass(place.owner, nn.Conv2d)
        ):
            return "dcn_offset"
        if "bias_lr_mult" in self._multipliers and place.name == "bias" and not in_deformable:
            return None if self._is_norm(place, ndim) else "bias"
        return None

    def _decay_rule(self, place: Place, ndim: int) -> str | None:
        in_deformable = _is_deformable(place.parent)
        applies = {
            "norm": self._is_norm(place, ndim),
            "bias": place.name == "bias" and not in_deformable,
            "dwconv": place.depthwise,
            "flat": ndim == 1 and not in_deformable,
        }
        given = (rule for rule in applies if f"{rule}_decay_mult" in self._multipliers)
        return next((rule for rule in given if applies[rule]), None)

    def _verdict(self, key: str | None, lr_rule: str | None, decay_rule: str | None) -> Verdict:
        case = (key, lr_rule, decay_rule)
        if case not in self._verdicts:
            self._verdicts[case] = self._make_verdict(*case)
        return self._verdicts[case]

    def _make_verdict(self, key: str | None, lr_rule: str | None, decay_rule: str | None) -> Verdict:
        entry = self.custom_keys[key] if key is not None else {}
        options: dict[str, Any] = {}
        why: dict[str, str] = {}
        for (mult, option), rule in zip(_MULTIPLIERS.items(), (lr_rule, decay_rule), strict=True):
            factors = {mult: entry[mult]} if mult in entry else {}
            if rule is not None:
                factors[f"{rule}_{mult}"] = self._multipliers[f"{rule}_{mult}"]
            if factors:
                value = self._base[option]
                for factor in factors.values():
                    value *= factor
                terms = "".join(f" × {factor:g} ({name})" for name, factor in factors.items())
                options[option], why[option] = value, f"{self._base[option]:g}{terms} = {value:g}"
        for option, value in entry.items():
            if option not in KEY_SETTINGS:
                options[option], why[option] = value, f"{value} (custom_keys)"
        type_rules = tuple(dict.fromkeys(rule for rule in (lr_rule, decay_rule) if rule is not None))
        labels = ([entry.get("name", key)] if key is not None else []) + list(type_rules)
        rules = ((key,) if key is not None else ()) + type_rules
        return Verdict(key, rules, ".".join(map(str, labels)) or "default", options, why)


def _matches(key: str, text: str, fqn: str) -> bool:
    if key.startswith("re:"):
        return _pattern(key.removeprefix("re:")).search(fqn) is not None
    if key.startswith("glob:"):
        return fnmatchcase(fqn, key.removeprefix("glob:"))
    return key in text


_pattern = lru_cache(maxsize=None)(re.compile)


def _check_patterns(keys: Iterable[str]) -> None:
    for key in keys:
        if key.startswith("re:"):
            try:
                _pattern(key.removeprefix("re:"))
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
