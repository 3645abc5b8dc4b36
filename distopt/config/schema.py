"""Every key of the config: its type, its default, and what it means.

The text under each field is its documentation. Rules that need torch (does the component take this
argument?) are held by those who build the component.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, PrivateAttr, field_validator, model_validator

from distopt.config.document import Positions, dump
from distopt.config.optimizer import OptimizerConfig
from distopt.config.profile import ProfileConfig
from distopt.config.section import Component, Count, OpenSection, RunShare, Section, Text, Time
from distopt.config.strategy import (
    ActivationCheckpointingConfig,
    CompileConfig,
    StrategyConfig,
    StrategyName,
)
from distopt.errors import ConfigError, nearest


class DataConfig(Section):
    """The `data` section."""

    train: Component
    """The dataset to train on."""

    val: Component | None = None
    """The dataset to evaluate on."""

    batch_size: Count
    """Samples per optimizer step, over all ranks: the same training whatever the world size."""

    micro_batch_size: Count | None = None
    """Samples per rank and forward; by default batch_size / world. The rest is gradient accumulation."""

    drop_last: bool = False
    """Leave out an epoch's last batch where it is not a whole one; by default it is trained on too."""

    collate: Component | None = None
    """What makes a batch of a list of samples, for train and val; by default torch's default_collate."""

    num_workers: Annotated[int, Field(ge=0)] = 0
    """Loader processes per rank; 0 loads in the training process."""

    @model_validator(mode="after")
    def _micro_batches_fit(self) -> DataConfig:
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ConfigError(
                "micro_batch_size",
                f"does not divide batch_size {self.batch_size}",
                given=self.micro_batch_size,
            )
        return self


class SchedulerConfig(OpenSection):
    """One entry of `param_scheduler`; keys beside these are arguments of its type."""

    by_epoch: bool = True
    """Whether begin, end and the type's own lengths are epochs; otherwise they are optimizer steps."""

    begin: Time | RunShare = 0
    """The first epoch or step at which this entry acts; or a share of the run ("5%"), which is in steps."""

    end: Time | RunShare | None = None
    """The epoch or step, or the share of the run, from which its value stays; by default its end."""

    convert_to_iter_based: bool = False
    """Read the lengths as epochs, but change the value at every step; begin and end may then be 0.5."""

    groups: Annotated[list[Text], Field(min_length=1)] | None = None
    """Patterns of group names (`head*`); by default every group."""

    @model_validator(mode="after")
    def _window_is_sound(self) -> SchedulerConfig:
        begin, end = self.begin, self.end
        if isinstance(begin, int | float) and isinstance(end, int | float) and end <= begin:
            raise ConfigError("end", f"is not after begin ({self.begin})", given=self.end)
        if self.convert_to_iter_based and not self.by_epoch:
            raise ConfigError(
                "convert_to_iter_based", "has nothing to convert: by_epoch is false", allowed="by_epoch: true"
            )
        return self


class ClipGradConfig(Section):
    """The `clip_grad` section."""

    max_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Gradients are scaled down so that their norm over all parameters does not exceed this."""

    per_group: bool = False
    """Of each optimizer group by itself, in place of all parameters."""

    max_value: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Each element of the gradients is cut to this size, in place of max_norm."""

    @model_validator(mode="after")
    def _one_of_both(self) -> ClipGradConfig:
        if (self.max_norm is None) == (self.max_value is None):
            raise ConfigError("", "takes one of max_norm and max_value", given=self.model_dump())
        if self.per_group and self.max_norm is None:
            raise ConfigError("per_group", "means nothing to max_value", given=True, allowed="max_norm")
        return self


class EvalConfig(Section):
    """The `eval` section."""

    every: Count
    """Optimizer steps between evaluations."""

    metrics: dict[Text, Component] = Field(
        default_factory=dict, json_schema_extra={"propertyNames": {"minLength": 1, "not": {"const": "loss"}}}
    )
    """Name → a metric of torchmetrics, updated with the model's prediction and the target."""

    @field_validator("metrics", mode="after")
    @classmethod
    def _loss_is_there_already(cls, metrics: dict[str, Component]) -> dict[str, Component]:
        if "loss" in metrics:
            raise ConfigError("loss", "the loss is always evaluated: name this metric differently")
        return metrics


class EmaConfig(Section):
    """The `ema` section."""

    decay: Annotated[float, Field(gt=0, lt=1)]
    """How much of the average each step keeps: 0.999 averages over about the last 1,000 steps."""

    warmup: bool = False
    """Keep no more than (1 + n) / (10 + n) after n steps, so that the first weights are soon forgotten."""

    evaluate: bool = False
    """Evaluate the averaged weights too, beside those trained: `ema.loss` beside `loss`, and so on."""


class CheckpointConfig(Section):
    """The `checkpoint` section."""

    every: Count | None = None
    """Optimizer steps between checkpoints; null: only the one at the end."""

    every_minutes: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Minutes between checkpoints, beside those of `every`: at the next logged step."""

    keep_last: Count = 3
    """How many checkpoints to keep."""

    keep_every: Count | None = None
    """Steps whose multiples are kept for good, beside the last ones."""

    best: Text | None = None
    """A metric of evaluation, such as loss: a checkpoint is saved at each evaluation with its best value so
    far, and the last of these is kept, as checkpoints/best."""

    asynchronous: bool = True
    """Train on while a checkpoint is written; takes memory for one copy of the state."""


GroupQuantity = Literal["lr", "weight_decay", "momentum", "grad_norm", "param_norm", "update_ratio"]


class LogConfig(Section):
    """The `log` section."""

    every: Count = 10
    """Optimizer steps between rows of metrics."""

    per_group: list[GroupQuantity] = Field(default_factory=lambda: list(get_args(GroupQuantity)))
    """What each row has of every group. param_norm and update_ratio (the norm of what a step adds, over that
    of the parameters) take a copy of this rank's parameters in a logged step."""

    @property
    def measures_updates(self) -> bool:
        return not {"param_norm", "update_ratio"}.isdisjoint(self.per_group)


def _with_home(value: Any) -> Any:
    if value == "":
        raise ConfigError("", "wrong value", given=value, allowed="text that is not empty")
    try:
        return Path(value).expanduser() if isinstance(value, str | Path) else value
    except RuntimeError:
        raise ConfigError("", "there is no such home directory", given=str(value)) from None


def _as_list(value: Any) -> Any:
    """None, one mapping or a list → a list."""
    if isinstance(value, dict) and any(str(key).isdecimal() for key in value):  # an override's
        problem, allowed = "there is no list to set an item of", "the whole list: [{type: …}]"
        raise ConfigError("", problem, given=value, allowed=allowed)
    if value is None or isinstance(value, dict):
        return [value] if value else []
    if not isinstance(value, list):
        raise ConfigError("", "wrong type", given=value, allowed="a mapping or a list of them")
    return value


def _as_compile(value: Any) -> Any:
    if isinstance(value, bool):
        return {} if value else None
    if not isinstance(value, dict | None):
        raise ConfigError("", "wrong type", given=value, allowed="true, false, or a mapping of options")
    return value


CheckpointingName = Literal["none", "full", "selective"]


def _as_checkpointing(value: Any) -> Any:
    shortcuts: dict[str, Any] = {"none": None, "full": {}, "selective": {"save": "matmul"}}
    if isinstance(value, str):
        if value not in shortcuts:
            raise ConfigError(
                "", "wrong value", given=value, allowed=shortcuts, suggestion=nearest(value, shortcuts)
            )
        return shortcuts[value]
    return value


class Config(Section):
    """A whole run."""

    work_dir: Annotated[Path, Field(strict=False), BeforeValidator(_with_home, json_schema_input_type=Text)]
    """The run directory: logs, metrics and checkpoints; by default runs/<name of the config file>."""

    resume: Text = "auto"
    """auto: continue what work_dir holds. never: work_dir must be empty. Or the path of a checkpoint."""

    resume_groups: Literal["config", "checkpoint", "error"] = "config"
    """Whose lr, weight_decay and other options a resumed run has where they differ; error: refuse that."""

    resume_strict: bool = True
    """The checkpoint has to have the model's parameters and buffers. false: what only the model has keeps
    its initial values, what only the checkpoint has is dropped, and both are listed."""

    resume_rename: dict[Text, Text] = Field(default_factory=dict)
    """What has another name in the checkpoint: FQN of a parameter, buffer or module → that of the model."""

    seed: Annotated[int, Field(ge=0, le=2**63 - 2**20)] = 0
    """Of the initial weights, the order of the data and all other randomness."""

    deterministic: bool = False
    """Use only deterministic algorithms, which may be slower."""

    model: Component
    """The model to train."""

    loss: Component | None = None
    """What takes the model's output and the target and returns the loss; by default the model returns it."""

    data: DataConfig
    """The datasets and the batch."""

    max_steps: Count | None = None
    """How long to train, in optimizer steps."""

    max_epochs: Count | None = None
    """How long to train, in passes over the training data; instead of max_steps."""

    max_time: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Minutes after which a start saves a checkpoint and ends; the next one continues."""

    hang_timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = 5.0
    """Minutes without progress after which the run ends and says which rank is the cause; four times that for
    the start, the first step, a checkpoint and the end. null: never."""

    strategy: Annotated[
        StrategyConfig,
        BeforeValidator(
            lambda value: {"type": value} if isinstance(value, str) else value,
            json_schema_input_type=StrategyName | StrategyConfig,
        ),
    ] = StrategyConfig()
    """How the model is spread over ranks: single, ddp, fsdp or hsdp."""

    sync_batchnorm: bool = False
    """BatchNorm over the samples of all ranks, in place of each rank's own."""

    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """What forward and backward compute in; the parameters stay fp32. fp16 scales the loss as needed, tf32
    is fp32 whose matrix products may round on the way."""

    compile: Annotated[
        CompileConfig | None,
        BeforeValidator(_as_compile, json_schema_input_type=bool | CompileConfig | None),
    ] = None
    """torch.compile: true, false, or its options."""

    activation_checkpointing: Annotated[
        ActivationCheckpointingConfig | None,
        BeforeValidator(
            _as_checkpointing,
            json_schema_input_type=CheckpointingName | ActivationCheckpointingConfig | None,
        ),
    ] = None
    """Which activations to compute anew in the backward: none, full (of every block), selective (of every
    block, but for matrix products), or its options."""

    optimizer: OptimizerConfig
    """The optimizer and its parameter groups."""

    param_scheduler: Annotated[
        list[SchedulerConfig],
        BeforeValidator(_as_list, json_schema_input_type=list[SchedulerConfig] | SchedulerConfig | None),
    ] = Field(default_factory=list)
    """How lr and other options of the groups change over time; one mapping or a list. Factors multiply."""

    clip_grad: ClipGradConfig | None = None
    """Gradient clipping."""

    max_skipped: Annotated[int, Field(ge=0)] = 10
    """Steps in a row that may be left out because their loss or gradient is no finite number: one more ends
    the run. At 0 none is left out: the first such loss that is logged ends it."""

    ema: EmaConfig | None = None
    """An exponential moving average of the weights, in checkpoints too; by default none."""

    eval: EvalConfig | None = None
    """Evaluation on data.val."""

    checkpoint: CheckpointConfig = CheckpointConfig()
    """When to save, and how many to keep."""

    log: LogConfig = LogConfig()
    """When to log."""

    profile: ProfileConfig = ProfileConfig()
    """Which steps to trace, and how."""

    callbacks: Annotated[
        list[Component],
        BeforeValidator(_as_list, json_schema_input_type=list[Component] | Component | None),
    ] = Field(default_factory=list)
    """What else happens during training; one mapping or a list."""

    _positions: Positions = PrivateAttr(default_factory=Positions)

    @model_validator(mode="after")
    def _sections_agree(self) -> Config:
        if (self.max_steps is None) == (self.max_epochs is None):
            problem = "missing: one of max_steps and max_epochs has to be given"
            if self.max_steps is not None:
                problem = "only one of max_steps and max_epochs can be given"
            raise ConfigError("max_steps", problem)
        if self.eval and not self.data.val:
            raise ConfigError("eval", "there is nothing to evaluate on", allowed="a dataset as data.val")
        if self.checkpoint.best and not self.eval:
            problem = "there is no evaluation that yields a metric"
            raise ConfigError("checkpoint.best", problem, given=self.checkpoint.best, allowed="eval.every")
        if self.ema and self.ema.evaluate:
            if not self.eval:
                raise ConfigError("ema.evaluate", "there is no evaluation", given=True, allowed="with `eval`")
            if taken := [name for name in self.eval.metrics if name.startswith("ema.")]:
                problem = "names that begin with `ema.` are for the averaged weights"
                raise ConfigError(f"eval.metrics.{taken[0]}", problem)
        gathered = self.strategy.param_dtype
        if gathered not in (None, "fp32", self.precision):
            problem = f"parameters cannot be gathered in this where precision is {self.precision}"
            allowed = f"fp32, or precision: {gathered}"
            raise ConfigError("strategy.param_dtype", problem, given=gathered, allowed=allowed)
        return self

    def locate(self, key: str) -> str | None:
        """The `file:line` (or the override) that a dotted key comes from; None where no file was read."""
        return self._positions.locate(key)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, defaults included, that loads to an equal config."""
        return {**self.model_dump(), "work_dir": str(self.work_dir)}

    def to_yaml(self) -> str:
        """The text of a config file that loads to an equal config."""
        return dump(self.to_dict())
