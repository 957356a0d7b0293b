# SPDX-License-Identifier: Apache-2.0
"""From the configuration to the data sets of a run, prepared on the disk."""

import logging
import shutil
from pathlib import Path

from primus.backends.megatron.core.datasets.settings import DatasetSettings, load_formatter
from primus.backends.megatron.core.datasets.sft_dataset import SFTDataset, warn_about_leakage
from primus.backends.megatron.core.datasets.training_sequences import Source
from primus.config.schema import DataSource, TrainConfig
from primus.sft.options import build_options
from primus.sft.prepared import cache_dir_of, jobs_of_run, open_prepared, prepare_or_wait
from primus.sft.prepared.manifest import QUARANTINE
from primus.sft.shards import ShardJob
from primus.sft.sources import TRAIN_SPLIT, VALIDATION_SPLIT
from primus.sft.tokenizer import SFTTokenizer
from primus.sft.workers import num_cores

logger = logging.getLogger("primus")


def build_datasets(
    config: TrainConfig, *, tokenizer: SFTTokenizer, writes_quarantine: bool = True
) -> tuple[SFTDataset, SFTDataset | None]:
    """Training and validation data of a run, prepared if they are not.

    Every process of a run calls it: one of those that share the disk prepares, and the others wait.

    Args:
        config: The run.
        tokenizer: Its tokenizer.
        writes_quarantine: Whether this process copies the rows that are not valid to `quarantine/` of the run's folder.

    Returns:
        Training data, and validation data or None if none is asked for.

    Raises:
        ConfigError: If no data is named.
        DataError: If the data can't be used.
    """
    keys = config.trainer
    jobs = jobs_of_run(keys, seq_length=keys.seq_length)
    formatter = load_formatter(
        keys.sft_conversation_format, tokenizer, keys.sft_chat_template, keys.sft_chat_template_kwargs
    )
    settings = DatasetSettings(
        tokenizer=tokenizer,
        formatter=formatter,
        max_seq_length=keys.seq_length,
        seed=keys.seed,
        options=build_options(keys),
        packing=keys.packing,
    )
    settings.check([file for job in jobs.values() for file in job.recipe.files])
    folders = {name: _prepared(job, cache_dir_of(config)) for name, job in jobs.items()}
    if writes_quarantine:
        _copy_quarantine(folders, to=config.exp_dir / "quarantine")
    names = [name for name in jobs if name != VALIDATION_SPLIT]
    shares = keys.sft_sources or (DataSource(dataset_name=""),)
    train = SFTDataset.from_tokenized(
        [
            Source(open_prepared(folders[name]), epochs=share.epochs or 1.0, weight=share.weight)
            for name, share in zip(names, shares, strict=True)
        ],
        settings,
        [file for name in names for file in jobs[name].recipe.files],
    )
    held_out = dict.fromkeys(names, VALIDATION_SPLIT) if keys.sft_validation_fraction > 0 else {}
    if VALIDATION_SPLIT in jobs:
        held_out = {VALIDATION_SPLIT: VALIDATION_SPLIT}
    if not held_out:
        return train, None
    validation = SFTDataset.from_tokenized(
        [Source(open_prepared(folders[name], split)) for name, split in held_out.items()],
        settings,
        [file for name in held_out for file in jobs[name].recipe.files],
    )
    if VALIDATION_SPLIT not in jobs:
        validation.ledger = train.ledger  # the same rows, which are told once
    warn_about_leakage(train, validation, "validation")
    return train, validation


def _prepared(job: ShardJob, cache_dir: Path) -> Path:
    return prepare_or_wait(job, cache_dir, num_workers=num_cores(), on_message=logger.info)


def _copy_quarantine(folders: dict[str, Path], *, to: Path) -> None:
    """Put the rows that are not valid where the run's output is; a file of an earlier run goes away."""
    for name in {TRAIN_SPLIT, VALIDATION_SPLIT, *folders}:
        target = to / f"{name.replace(' ', '_')}.jsonl"
        source = folders[name] / QUARANTINE if name in folders else None
        if source is None or not source.exists():
            target.unlink(missing_ok=True)
            continue
        to.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part")
        shutil.copyfile(source, part)
        part.replace(target)
