# SPDX-License-Identifier: Apache-2.0
"""YAML to one frozen, typed `TrainConfig`.

strict_yaml, tree       a YAML file -> a tree of text in which every value has its file and line
documents, layers       extends, presets, overrides and the command line, laid on top of each other
keys, suggestions       unknown keys refused, with what was probably meant
variables               ${VAR} and ${VAR:default} filled in
validation, schema      text -> typed values, key by key
rules, unavailable      what must hold between keys; what this version does not have
loading                 a TrainConfig, or one ConfigError with every problem
"""

from primus.config.loading import load_config
from primus.config.reference import KeyDescription, describe_keys
from primus.config.schema import (
    DataKeys,
    LoraConfig,
    ModelKeys,
    OptimizationKeys,
    SystemKeys,
    TrainConfig,
    TrainerConfig,
)

__all__ = [
    "DataKeys",
    "KeyDescription",
    "LoraConfig",
    "ModelKeys",
    "OptimizationKeys",
    "SystemKeys",
    "TrainConfig",
    "TrainerConfig",
    "describe_keys",
    "load_config",
]
