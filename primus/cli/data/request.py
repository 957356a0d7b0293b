# SPDX-License-Identifier: Apache-2.0
"""What `primus data check`, `show` and `stats` are asked about: data files with options, or the YAML file of a run."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from primus.chat.formats import SourceOptions
from primus.cli.data.source_options import add_source_arguments, build_source_options
from primus.cli.parsing import CommandParser, positive_int
from primus.config import load_config
from primus.config.schema import DataKeys, TrainConfig
from primus.errors import ConfigError
from primus.sft.options import build_options
from primus.sft.recipe import Recipe
from primus.sft.sources import VALIDATION_SPLIT, resolve_files
from primus.sft.workers import num_cores

_OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=.*", re.DOTALL)
_CONFIG_SUFFIXES = (".yaml", ".yml")


def add_request_arguments(parser: CommandParser) -> None:
    """Add the arguments that name data, format and tokenizer.

    Args:
        parser: The command's parser.
    """
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="data files, patterns or folders; or the YAML file of a run, with key=value to change it",
    )
    parser.add_argument(
        "--tokenizer", metavar="T", help="a folder or name for AutoTokenizer, a tokenizer.json or .model"
    )
    parser.add_argument("--format", metavar="F", help="the conversation format (sft_conversation_format; openai)")
    parser.add_argument("--chat-template", metavar="FILE", help="a chat template, for --format template")
    parser.add_argument("--seq-length", type=positive_int, metavar="N", help="positions of a training sequence")
    parser.add_argument("--split", metavar="NAME", help="the split of a folder (train)")
    parser.add_argument("--workers", type=positive_int, metavar="N", help="processes (all cores)")
    add_source_arguments(parser)


def build_recipe(options: argparse.Namespace) -> Recipe:
    """The recipe that the arguments ask for.

    Args:
        options: The parsed arguments.

    Returns:
        The recipe; of a run's YAML file, the one that the run trains with.

    Raises:
        ConfigError: If the arguments don't fit together, or the YAML file can't be used.
    """
    names, overrides, config = _words(options)
    return _from_arguments(names, overrides, options) if config is None else _from_config(config, overrides, options)


def requested_run(options: argparse.Namespace) -> TrainConfig | None:
    """The run whose YAML file the arguments name.

    Args:
        options: The parsed arguments.

    Returns:
        Its configuration; None if they name data files.

    Raises:
        ConfigError: If the arguments don't fit together, or the YAML file can't be used.
    """
    _, overrides, config = _words(options)
    return None if config is None else load_config(config, overrides=overrides)


def _words(options: argparse.Namespace) -> tuple[list[str], list[str], str | None]:
    """The data files, what changes a configuration, and its YAML file if one is named."""
    overrides = [word for word in options.sources if _OVERRIDE.fullmatch(word) and not Path(word).exists()]
    names = [word for word in options.sources if word not in overrides]
    configs = [name for name in names if name.endswith(_CONFIG_SUFFIXES)]
    if not configs:
        return names, overrides, None
    if len(names) > 1:
        raise ConfigError(
            f"{configs[0]}: stands beside {len(names) - 1} more sources; name one YAML file, or data files"
        )
    if options.split or build_source_options(options) != SourceOptions():
        raise ConfigError(
            f"{configs[0]}: says itself how rows are read; change it with key=value, such as sft_dataset_split=NAME or"
            " sft_source_format=FORMAT, and leave the options for data files away"
        )
    return [], overrides, configs[0]


def num_workers(options: argparse.Namespace) -> int:
    """Processes that the arguments ask for."""
    return int(options.workers or num_cores())


def _from_arguments(names: Sequence[str], overrides: Sequence[str], options: argparse.Namespace) -> Recipe:
    if overrides:
        raise ConfigError(
            f"{overrides[0]}: key=value goes with the YAML file of a run; with data files use the options"
        )
    if options.tokenizer is None:
        raise ConfigError(
            "--tokenizer: is missing; give a folder or name for AutoTokenizer, a tokenizer.json or a .model"
        )
    keys = DataKeys()
    return Recipe(
        files=resolve_files(tuple(names), split=options.split or keys.sft_dataset_split),
        source=build_source_options(options),
        tokenizer=options.tokenizer,
        conversation_format=options.format or keys.sft_conversation_format,
        chat_template=options.chat_template,
        max_seq_length=options.seq_length,
        options=build_options(keys),
    )


def _from_config(path: str, overrides: Sequence[str], options: argparse.Namespace) -> Recipe:
    keys = load_config(path, overrides=overrides).trainer
    assert keys.sft_dataset_name is not None, "a rule of the configuration"
    files = list(resolve_files(keys.sft_dataset_name, split=keys.sft_dataset_split))
    if keys.sft_validation_dataset_name is not None:
        files += resolve_files(keys.sft_validation_dataset_name, split=VALIDATION_SPLIT)
    elif keys.sft_validation_split is not None:
        files += resolve_files(keys.sft_dataset_name, split=keys.sft_validation_split)
    return Recipe(
        files=tuple(files),
        source=SourceOptions(format=keys.sft_source_format, messages_field=keys.sft_messages_field),
        tokenizer=options.tokenizer or keys.tokenizer_model or "",
        conversation_format=options.format or keys.sft_conversation_format,
        chat_template=options.chat_template or keys.sft_chat_template,
        chat_template_kwargs=keys.sft_chat_template_kwargs,
        max_seq_length=options.seq_length or keys.seq_length,
        options=build_options(keys),
    )
