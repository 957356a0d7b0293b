# SPDX-License-Identifier: Apache-2.0
"""A file into one `TrainConfig`, or all that is wrong with it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from primus.config.layers import read_layers
from primus.config.places import EXAMPLE_CONFIGS, find_file
from primus.config.pretrained import with_pretrained_keys
from primus.config.rules import broken_rules
from primus.config.schema import ModelKeys, TrainConfig, TrainerConfig
from primus.config.tree import Origin, Section
from primus.config.unavailable import asked_for
from primus.config.validation import validate_section
from primus.config.variables import expand_section
from primus.errors import ConfigError


def load_config(path: str | Path, *, overrides: Sequence[str] = ()) -> TrainConfig:
    """Return the configuration of a training run.

    What comes later wins: trainer preset, model preset, `overrides` of the module, `key=value` of the command line.
    Variables are filled in after that, in the values that are left. With `hf_path` the model keys are those of that
    folder, and what is written beside them must agree.

    Args:
        path: A YAML file. A bare name is looked for in the working folder, then in `examples/configs/`.
        overrides: `key=value` of the command line. A value is plain text, or a list or mapping as in YAML.

    Returns:
        The settings, every value checked.

    Raises:
        ConfigError: If anything is wrong, with one line for each problem: the file and line (or `command line`), the
            key, what is wrong and what to do. A file that is missing or is not YAML ends the search at once.
    """
    file = find_file(str(path), where="configuration", folder=Path(), library=EXAMPLE_CONFIGS)
    problems: list[str] = []
    layers = read_layers(file, overrides=overrides, problems=problems)
    run_values, _ = _values(layers.run, TrainConfig, file=file, problems=problems)
    trainer_section = with_pretrained_keys(layers.trainer, problems=problems)
    trainer_values, wrong = _values(trainer_section, TrainerConfig, file=file, problems=problems)
    trainer = TrainerConfig.model_construct(**trainer_values)
    problems += _problems_between_keys(trainer, trainer_section, wrong=wrong, file=file)
    if problems:
        raise ConfigError(*problems)
    return TrainConfig.model_validate({**run_values, "trainer": trainer_values})


def _values(
    section: Section, model: type[BaseModel], *, file: Path, problems: list[str]
) -> tuple[Mapping[str, Any], frozenset[str]]:
    """Return the typed values of a section, and the keys that have none because of a problem."""
    filled = expand_section(section, problems=problems)
    validated = validate_section(filled, model)
    problems += validated.problems
    required = {key for key, field in model.model_fields.items() if field.is_required() and key != "trainer"}
    missing = [key for key in model.model_fields if key in required - section.children.keys()]
    problems += [f"{file}: {key}: is missing; {_where_it_goes(key)}" for key in missing]
    unfilled = section.children.keys() - filled.children.keys()
    return validated.values, validated.wrong.union(missing, unfilled)


def _where_it_goes(key: str) -> str:
    if key in ModelKeys.model_fields:
        return (
            "name a model preset in the module, for example `model: llama3_8B.yaml`, or a Hugging Face folder with"
            " hf_path, or set it under `overrides`"
        )
    if key in TrainConfig.model_fields:
        return "set it at the top level of the file"
    return "set it under `overrides`"


def _problems_between_keys(
    trainer: TrainerConfig, section: Section, *, wrong: frozenset[str], file: Path
) -> Sequence[str]:
    features = asked_for(trainer)
    problems = []
    for feature in features:
        node = section.find(feature.key)
        assert node is not None  # no default asks for one of them
        problems.append(f"{node.origin}: {feature.key}: {node} is not available yet; {feature.instead}")
    wrong = wrong.union(feature.key for feature in features)
    for rule, complaint in broken_rules(trainer, wrong=wrong):
        key = next((key for key in rule.keys if section.find(key) is not None), rule.keys[0])
        node = section.find(key)
        problems.append(f"{Origin(file) if node is None else node.origin}: {key}: {complaint}")
    return problems
