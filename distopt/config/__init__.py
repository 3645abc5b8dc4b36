"""The config: YAML → validated, typed, immutable `Config`. Knows no torch."""

from distopt.config.layout import BatchLayout, batch_layout, shard_size
from distopt.config.load import load_config
from distopt.config.optimizer import OptimizerConfig, ParamwiseConfig
from distopt.config.profile import ProfileConfig
from distopt.config.schema import (
    CheckpointConfig,
    ClipGradConfig,
    Config,
    DataConfig,
    EmaConfig,
    EvalConfig,
    LogConfig,
    SchedulerConfig,
)
from distopt.config.section import Component, OpenSection, RunShare, Section
from distopt.config.strategy import ActivationCheckpointingConfig, CompileConfig, StrategyConfig
from distopt.config.validate import validate

__all__ = [
    "ActivationCheckpointingConfig",
    "BatchLayout",
    "CheckpointConfig",
    "ClipGradConfig",
    "CompileConfig",
    "Component",
    "Config",
    "DataConfig",
    "EmaConfig",
    "EvalConfig",
    "LogConfig",
    "OpenSection",
    "OptimizerConfig",
    "ParamwiseConfig",
    "ProfileConfig",
    "RunShare",
    "SchedulerConfig",
    "Section",
    "StrategyConfig",
    "batch_layout",
    "load_config",
    "shard_size",
    "validate",
]
