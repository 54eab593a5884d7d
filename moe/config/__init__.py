"""Typed configuration: a yaml file and key=value overrides become one frozen `Config`. Imports nothing heavy."""

from moe.config.load import ConfigError, load_config, to_yaml
from moe.config.schema import (
    Config,
    EvalData,
    ModelConfig,
    OptimizerConfig,
    ParallelismConfig,
    SchedulerConfig,
    TextData,
    TrainData,
)
from moe.config.times import Every, Time, parse_seconds, parse_time

__all__ = [
    "Config",
    "ConfigError",
    "EvalData",
    "Every",
    "ModelConfig",
    "OptimizerConfig",
    "ParallelismConfig",
    "SchedulerConfig",
    "TextData",
    "Time",
    "TrainData",
    "load_config",
    "parse_seconds",
    "parse_time",
    "to_yaml",
]
