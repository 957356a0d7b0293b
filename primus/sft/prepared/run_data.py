# SPDX-License-Identifier: Apache-2.0
"""The data sets that a training run is made of."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from primus.config.schema import DataKeys, DataSource
from primus.errors import ConfigError
from primus.sft.batch_encoding import Outcome
from primus.sft.ledger import TRAINED, VALIDATION
from primus.sft.options import build_options
from primus.sft.recipe import Recipe
from primus.sft.shards import ShardJob
from primus.sft.sources import TRAIN_SPLIT, VALIDATION_SPLIT, require_folder, resolve_files


def jobs_of_run(keys: DataKeys, *, seq_length: int) -> dict[str, ShardJob]:
    """How the data of a run are made.

    Args:
        keys: The run's keys.
        seq_length: Positions of a training sequence.

    Returns:
        The job `train`, or `source 1`, `source 2` and so on where sources are mixed, and the job `validation` if the
        run validates on other files. What a fraction holds out of the training files belongs to their own jobs.

    Raises:
        ConfigError: If no data or no tokenizer is named, or a name has no files.
    """
    if keys.tokenizer_model is None:
        raise ConfigError("tokenizer_model: is not set; name one")
    if keys.sft_dataset_name is None and not keys.sft_sources:
        raise ConfigError("sft_dataset_name: is not set; name the files to train on")

    def job(files: Sequence[Path], outcome: Outcome, source: DataSource | None = None) -> ShardJob:
        options = build_options(keys, source)
        recipe = Recipe(
            files=tuple(files),
            source=options.source,
            tokenizer=keys.tokenizer_model or "",
            conversation_format=keys.sft_conversation_format,
            chat_template=keys.sft_chat_template,
            chat_template_kwargs=keys.sft_chat_template_kwargs,
            max_seq_length=seq_length,
            options=options,
        )
        return ShardJob(recipe, outcome, keys.sft_validation_fraction if outcome == TRAINED else 0.0)

    jobs = {
        f"source {number}": job(resolve_files(source.dataset_name, split=source.split), TRAINED, source)
        for number, source in enumerate(keys.sft_sources, start=1)
    }
    if keys.sft_dataset_name is not None:
        jobs = {TRAIN_SPLIT: job(resolve_files(keys.sft_dataset_name, split=keys.sft_dataset_split), TRAINED)}
    _refuse_shared_files(jobs)
    if keys.sft_validation_dataset_name is not None:
        jobs[VALIDATION_SPLIT] = job(resolve_files(keys.sft_validation_dataset_name), VALIDATION)
    elif keys.sft_validation_split is not None and keys.sft_dataset_name is not None:
        require_folder(keys.sft_dataset_name, split=keys.sft_validation_split, key="sft_validation_split")
        others = resolve_files(keys.sft_dataset_name, split=keys.sft_validation_split)
        jobs[VALIDATION_SPLIT] = job(others, VALIDATION)
    return jobs


def _refuse_shared_files(jobs: Mapping[str, ShardJob]) -> None:
    owners: dict[Path, str] = {}
    for name, job in jobs.items():
        for file in job.recipe.files:
            if (owner := owners.setdefault(file.resolve(), name)) != name:
                raise ConfigError(
                    f"sft_sources: {file} is in {owner} and in {name}, and its rows would be trained in both; give the"
                    " one source more epochs or weight"
                )
