"""How a model is spread over ranks, and what is computed anew or compiled: keys that wrapping reads."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from distopt.config.section import Count, Section, Text
from distopt.errors import ConfigError

StrategyName = Literal["single", "ddp", "fsdp", "hsdp"]
GatherPrecision = Literal["fp32", "bf16", "fp16"]
Patterns = Annotated[list[Text], Field(min_length=1)]

_MEANS_SOMETHING_TO: Final = {
    "find_unused_parameters": ("ddp", "fsdp", "hsdp"),
    "static_graph": ("ddp",),
    "bucket_cap_mb": ("ddp",),
    "compress_gradients": ("ddp",),
    "units": ("fsdp", "hsdp"),
    "reshard_after_forward": ("fsdp", "hsdp"),
    "prefetch": ("fsdp", "hsdp"),
    "param_dtype": ("fsdp", "hsdp"),
    "reduce_dtype": ("fsdp", "hsdp"),
    "cpu_offload": ("fsdp", "hsdp"),
    "ignored": ("fsdp", "hsdp"),
    "shard_size": ("hsdp",),
}


class StrategyConfig(Section):
    """The `strategy` section; its type alone may stand for it."""

    type: StrategyName = "ddp"
    """single: one process. ddp: replicas. fsdp: parameters, gradients and optimizer state sharded (FSDP2).
    hsdp: sharded within groups of ranks, replicated across them."""

    meta_init: bool = False
    """Build the model without memory; initial values are set once it is wrapped, shard by shard."""

    find_unused_parameters: bool = False
    """ddp: look in each backward for parameters that had no part in the loss; costs time. fsdp, hsdp: those
    that a rank did not use count as 0 there; without, all ranks have to use the same in each step."""

    static_graph: bool = False
    """ddp: every step uses the same parameters in the same order, which DDP may rely on."""

    bucket_cap_mb: Count = 25
    """ddp: gradients are exchanged in buckets of this size, in MiB."""

    compress_gradients: Literal["none", "bf16"] = "none"
    """ddp: what gradients travel in; none is their own precision."""

    units: Patterns | None = None
    """fsdp, hsdp: what is gathered and freed together: names of classes, or patterns of FQNs (`layers.*`);
    by default the repeated blocks, or else the classes in the model's `_no_split_modules`."""

    reshard_after_forward: bool | Count = True
    """fsdp, hsdp: free a unit's parameters between forward and backward, or keep them; a number keeps them
    sharded over so many ranks."""

    prefetch: Annotated[int, Field(ge=0)] = 0
    """fsdp, hsdp: units gathered ahead of the one that is computed, beside the next, which always is."""

    param_dtype: GatherPrecision | None = None
    """fsdp, hsdp: what parameters are gathered in; by default `precision`. The shards stay fp32."""

    reduce_dtype: GatherPrecision = "fp32"
    """fsdp, hsdp: what gradients are added up in over ranks."""

    cpu_offload: bool = False
    """fsdp, hsdp: keep the shards and the optimizer's state in the CPU's memory; step there."""

    ignored: Patterns | None = None
    """fsdp, hsdp: patterns of FQNs of frozen parameters that every rank holds whole."""

    shard_size: Count | None = None
    """hsdp: ranks that share one copy of the model; by default those of a node."""

    @model_validator(mode="after")
    def _options_mean_something(self) -> StrategyConfig:
        for option in self.model_fields_set:
            types = _MEANS_SOMETHING_TO.get(option, (self.type,))
            value = getattr(self, option)
            if self.type not in types and value != type(self).model_fields[option].default:
                problem = f"means nothing to {self.type}"
                raise ConfigError(option, problem, given=value, allowed=f"type: {' or '.join(types)}")
        if self.static_graph and self.find_unused_parameters:
            problem = "a static graph is looked at once, so nothing is looked for in each backward"
            raise ConfigError("find_unused_parameters", problem, given=True, allowed="one of both")
        return self

    @property
    def shards(self) -> bool:
        """Whether parameters are sharded."""
        return self.type in ("fsdp", "hsdp")


class ActivationCheckpointingConfig(Section):
    """The `activation_checkpointing` section; `none`, `full` or `selective` may stand for it."""

    every: Count = 1
    """Of the repeated blocks, each so manieth computes its activations anew in the backward."""

    modules: Patterns | None = None
    """Names of classes, or patterns of FQNs, of the modules that do, in place of the repeated blocks."""

    save: Patterns | Literal["matmul"] | None = None
    """Operators whose results are kept all the same (`aten.mm`); matmul: matrix products and attention."""

    @model_validator(mode="after")
    def _one_of_both(self) -> ActivationCheckpointingConfig:
        if self.modules and "every" in self.model_fields_set:
            raise ConfigError("every", "counts blocks, and modules names others", allowed="one of both")
        return self


class CompileConfig(Section):
    """The `compile` section; true may stand for it."""

    scope: Literal["blocks", "model"] = "blocks"
    """Each repeated block by itself, which compiles once for all of them; or the whole model."""

    backend: Text = "inductor"
    """The backend of torch.compile."""

    mode: Text | None = None
    """Its mode: default, reduce-overhead (CUDA graphs), max-autotune."""

    dynamic: bool | None = None
    """Whether shapes may change; by default they are taken as fixed until they do."""

    fullgraph: bool = False
    """Refuse a break in the graph, in place of a warning."""
