"""The `optimizer` section: everything that can be said about it without torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import isfinite
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator

from distopt.config.section import Component, Multiplier, OpenSection, Section, Text
from distopt.errors import ConfigError, nearest, raise_all

DEFAULT_CONSTRUCTOR = "DefaultOptimWrapperConstructor"
LAYER_CONSTRUCTOR = "LearningRateDecayOptimWrapperConstructor"

MULTIPLIES = {"lr_mult": "lr", "decay_mult": "weight_decay"}
KEY_SETTINGS = (*MULTIPLIES, "name", "hidden_only")
"""What an entry of `custom_keys` may hold besides `type` and options of the optimizer."""


class ParamwiseConfig(Section):
    """The `optimizer.paramwise_cfg` section: which parameters get which multiple of lr and weight_decay.

    A multiplier that is null counts as not given.
    """

    model_config = ConfigDict(extra="allow")  # for constructors of the user's; OptimizerConfig looks at them

    bias_lr_mult: Multiplier | None = None
    """Learning rate of biases; not those of norms and deformable convolutions."""

    bias_decay_mult: Multiplier | None = None
    """Weight decay of biases; not those of norms and deformable convolutions."""

    norm_decay_mult: Multiplier | None = None
    """Weight decay of normalisation layers, weight and bias."""

    dwconv_decay_mult: Multiplier | None = None
    """Weight decay of depthwise convolutions."""

    flat_decay_mult: Multiplier | None = None
    """Weight decay of all other one-dimensional parameters."""

    dcn_offset_lr_mult: Multiplier | None = None
    """Learning rate of the offset layer inside deformable convolutions."""

    bypass_duplicate: bool = False
    """Allow a parameter that stands at several places of the model; it follows the rules of the first."""

    norm_types: Literal["auto", "mmengine"] | list[Text] = "auto"
    """What counts as a norm: auto (RMSNorm too), mmengine (only its own), or import paths added to auto."""

    custom_keys_mode: Literal["override", "combine"] = "override"
    """Whether a custom key's multipliers replace those of the other rules, or multiply them."""

    custom_keys: dict[Text, dict[Text, Any]] = Field(default_factory=dict)
    """Part of a parameter's name → lr_mult, decay_mult, options of the optimizer, and the group's `name`.

    With a `type`, another optimizer steps these parameters, and the options are its arguments. `hidden_only`
    (true for Muon) leaves all but the matrices inside the model's repeated blocks to the other rules.
    """

    layer_decay_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Multiple of the learning rate for each layer above; with LearningRateDecayOptimWrapperConstructor."""

    @property
    def parts(self) -> dict[str, Component]:
        """The custom keys that name an optimizer of their own → that, with its arguments."""
        return {
            key: Component(**{name: value for name, value in entry.items() if name not in KEY_SETTINGS})
            for key, entry in self.custom_keys.items()
            if "type" in entry
        }

    @property
    def own(self) -> dict[str, Any]:
        """The keys that only a constructor of the user's knows."""
        return dict(self.model_extra or {})

    @field_validator("custom_keys", mode="after")
    @classmethod
    def _entries_are_sound(cls, entries: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        raise_all(error.under(key) for key, entry in entries.items() for error in _entry_errors(entry))
        return entries


class OptimizerConfig(OpenSection):
    """The `optimizer` section; keys beside these are the optimizer's arguments (lr, weight_decay, …)."""

    constructor: Text = DEFAULT_CONSTRUCTOR
    """What turns paramwise_cfg into parameter groups: a short name, or the import path of a class."""

    unmatched_keys: Literal["error", "warn"] = "error"
    """What to do about a custom key that matches no parameter."""

    paramwise_cfg: Annotated[
        ParamwiseConfig | None, BeforeValidator(lambda value: None if value == {} else value)
    ] = None
    """Multiples of lr and weight_decay by kind or name of the parameter."""

    @property
    def paramwise(self) -> ParamwiseConfig:
        """`paramwise_cfg`; where there is none, one without rules."""
        return self.paramwise_cfg or ParamwiseConfig()

    @model_validator(mode="after")
    def _keys_are_the_constructors(self) -> OptimizerConfig:
        paramwise = self.paramwise
        errors = []
        if self.constructor.isidentifier():  # one of distopt's own
            known = list(ParamwiseConfig.model_fields)
            errors = [
                ConfigError(
                    f"paramwise_cfg.{name}", "unknown key", allowed=known, suggestion=nearest(name, known)
                )
                for name in paramwise.own
            ]
        if paramwise.layer_decay_rate is not None and self.constructor == DEFAULT_CONSTRUCTOR:
            problem = f"needs constructor: {LAYER_CONSTRUCTOR}"
            errors.append(ConfigError("paramwise_cfg.layer_decay_rate", problem))
        raise_all(errors)
        return self

    @model_validator(mode="after")
    def _multipliers_have_a_base(self) -> OptimizerConfig:
        given = self.arguments
        errors = list(_number_errors(given, ("lr", "weight_decay")))
        if self.paramwise_cfg:
            errors += [
                ConfigError(
                    f"paramwise_cfg.{multiplier}",
                    f"multiplies {base}, which the optimizer section does not give",
                    allowed=f"{base} in the optimizer section, or no {multiplier.rpartition('.')[2]}",
                )
                for multiplier, base in _multipliers(self.paramwise_cfg)
                if base not in given
            ]
        raise_all(errors)
        return self


def _multipliers(paramwise: ParamwiseConfig) -> Iterator[tuple[str, str]]:
    """Every multiplier of the section's own arguments, as a dotted key, and the one that it multiplies."""
    bases = {"_lr_mult": "lr", "_decay_mult": "weight_decay"}
    for name in type(paramwise).model_fields:
        for ending, base in bases.items():
            if name.endswith(ending) and getattr(paramwise, name) is not None:
                yield name, base
    if paramwise.layer_decay_rate is not None:
        yield "layer_decay_rate", "lr"
    for key, entry in paramwise.custom_keys.items():
        for multiplier, base in MULTIPLIES.items():
            if multiplier in entry and "type" not in entry:
                yield f"custom_keys.{key}.{multiplier}", base


def _entry_errors(entry: Mapping[str, Any]) -> Iterator[ConfigError]:
    for name, value in entry.items():
        if value is None:
            yield ConfigError(name, "wrong value", given=None, allowed="a value, or no such key")
        elif name in ("name", "type") and not (isinstance(value, str) and value):
            yield ConfigError(name, "wrong value", given=value, allowed="text that is not empty")
        elif name == "hidden_only" and not isinstance(value, bool):
            yield ConfigError(name, "wrong value", given=value, allowed="true or false")
    for multiplier, base in MULTIPLIES.items() if "type" in entry else ():
        if multiplier in entry and base not in entry:
            problem = f"multiplies {base}, which this entry does not give"
            yield ConfigError(multiplier, problem, allowed=f"{base} beside it")
    given = {name: value for name, value in entry.items() if value is not None}
    yield from _number_errors(given, ("lr_mult", "decay_mult", "lr", "weight_decay"))


def _number_errors(values: Mapping[str, Any], names: Iterable[str]) -> Iterator[ConfigError]:
    for name in names:
        value = values.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value) or value < 0:
            yield ConfigError(name, "wrong value", given=value, allowed="a finite number ≥ 0")
