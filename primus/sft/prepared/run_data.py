# SPDX-License-Identifier: Apache-2.0
"""The data sets that a training run is made of."""

from collections.abc import Sequence
from pathlib import Path

from primus.chat.conversations import SourceOptions
from primus.config.schema import DataKeys
from primus.errors import ConfigError
from primus.sft.ledger import TRAINED, VALIDATION
from primus.sft.options import build_options
from primus.sft.recipe import Recipe
from primus.sft.shards import Outcome, ShardJob
from primus.sft.sources import TRAIN_SPLIT, VALIDATION_SPLIT, resolve_files


def jobs_of_run(keys: DataKeys, *, seq_length: int) -> dict[str, ShardJob]:
    """How the data of a run are made.

    Args:
        keys: The run's keys.
        seq_length: Positions of a training sequence.

    Returns:
        The job `train`, and the job `validation` if the run validates on other files. What a fraction holds out of the
        training files belongs to the first job.

    Raises:
        ConfigError: If no data or no tokenizer is named, or a name has no files.
    """
    for name, value in (("sft_dataset_name", keys.sft_dataset_name), ("tokenizer_model", keys.tokenizer_model)):
        if value is None:
            raise ConfigError(f"{name}: is not set; name one")
    assert keys.sft_dataset_name is not None

    def job(files: Sequence[Path], outcome: Outcome, validation_fraction: float = 0.0) -> ShardJob:
        recipe = Recipe(
            files=tuple(files),
            source=SourceOptions(format=keys.sft_source_format, messages_field=keys.sft_messages_field),
            tokenizer=keys.tokenizer_model or "",
            conversation_format=keys.sft_conversation_format,
            chat_template=keys.sft_chat_template,
            chat_template_kwargs=keys.sft_chat_template_kwargs,
            max_seq_length=seq_length,
            options=build_options(keys),
        )
        return ShardJob(recipe, outcome, validation_fraction)

    files = resolve_files(keys.sft_dataset_name, split=keys.sft_dataset_split)
    jobs = {TRAIN_SPLIT: job(files, TRAINED, keys.sft_validation_fraction)}
    if keys.sft_validation_dataset_name is not None:
        jobs[VALIDATION_SPLIT] = job(resolve_files(keys.sft_validation_dataset_name), VALIDATION)
    elif keys.sft_validation_split is not None:
        others = resolve_files(keys.sft_dataset_name, split=keys.sft_validation_split)
        jobs[VALIDATION_SPLIT] = job(others, VALIDATION)
    return jobs
