# SPDX-License-Identifier: Apache-2.0
"""From the configuration to the data sets of a run, prepared on the disk."""

import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from primus.backends.megatron.core.datasets.settings import DatasetSettings, load_formatter
from primus.backends.megatron.core.datasets.sft_dataset import SFTDataset, refuse_empty, warn_about_leakage
from primus.backends.megatron.core.datasets.training_sequences import Source
from primus.config.schema import DataSource, TrainConfig, TrainerConfig
from primus.sft.batch_encoding import ShardEncoder
from primus.sft.ledger import STREAMED
from primus.sft.options import build_options
from primus.sft.prepared import Progress, cache_dir_of, jobs_of_run, open_prepared, prepare_or_wait
from primus.sft.prepared.key import canonical, key_facts
from primus.sft.prepared.manifest import QUARANTINE
from primus.sft.recipe import Encoder
from primus.sft.shards import ShardJob
from primus.sft.sources import TRAIN_SPLIT, VALIDATION_SPLIT, names_of_sources
from primus.sft.streaming import StreamingDataset
from primus.sft.tokenizer import SFTTokenizer
from primus.sft.workers import num_cores

logger = logging.getLogger("primus")

DEFAULT_SHUFFLE_BUFFER = 10_000
_SECONDS_BETWEEN_LINES = 10


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
    jobs, settings = _checked_jobs(config, tokenizer)
    folders = {name: _prepared(job, config, settings) for name, job in jobs.items()}
    if writes_quarantine:
        _copy_quarantine(folders, to=config.exp_dir / "quarantine")
    names = [name for name in jobs if name != VALIDATION_SPLIT]
    shares = keys.sft_sources or (DataSource(dataset_name=""),)
    told_as = names_of_sources([share.dataset_name for share in keys.sft_sources] or [keys.sft_dataset_name or ""])
    sources = [
        Source(open_prepared(folders[name]), epochs=share.epochs or 1.0, weight=share.weight, name=source_name)
        for name, share, source_name in zip(names, shares, told_as, strict=True)
    ]
    for name, source in zip(names, sources, strict=True):
        refuse_empty(source.data, settings, jobs[name].recipe.files)
    files = [file for name in names for file in jobs[name].recipe.files]
    train = SFTDataset.from_tokenized(sources, settings, files)
    held_out = dict(zip(names, told_as, strict=True)) if keys.sft_validation_fraction > 0 else {}
    if VALIDATION_SPLIT in jobs:
        held_out = {VALIDATION_SPLIT: _name_of_validation(keys)}
    if not held_out:
        return train, None
    parts = [
        Source(open_prepared(folders[name], VALIDATION_SPLIT), name=source_name)
        for name, source_name in held_out.items()
    ]
    validation = SFTDataset.from_tokenized(
        # A small source may have nothing held out.
        [part for part in parts if len(part.data)] or parts[:1],
        settings,
        [file for name in held_out for file in jobs[name].recipe.files],
    )
    if VALIDATION_SPLIT not in jobs:
        validation.ledger = train.ledger  # the same rows, which are told once
    warn_about_leakage(train, validation, "validation")
    return train, validation


class StreamedData(NamedTuple):
    """What a run on a stream reads."""

    stream: StreamingDataset
    """The training data."""
    validation: SFTDataset | None
    """Prepared validation data, or None if none is asked for."""
    writes_bos: bool
    """Whether the format writes BOS itself."""


def build_stream(
    config: TrainConfig, *, tokenizer: SFTTokenizer, state: Mapping[str, Any] | None, writes_quarantine: bool = True
) -> StreamedData:
    """The stream that a run trains on, and its validation data, which is prepared.

    Args:
        config: The run.
        tokenizer: Its tokenizer.
        state: Where the stream goes on; None begins it.
        writes_quarantine: Whether this process writes the rows that are not valid.

    Returns:
        The data.

    Raises:
        ConfigError: If no data is named.
        DataError: If the data can't be used.
    """
    keys = config.trainer
    jobs, settings = _checked_jobs(config, tokenizer)
    quarantine = config.exp_dir / "quarantine" if writes_quarantine else None
    recipe = jobs[TRAIN_SPLIT].recipe
    facts = json.loads(canonical(key_facts(jobs[TRAIN_SPLIT], tokenizer=tokenizer, sources=())))
    stream = StreamingDataset(
        recipe.files,
        encoder=ShardEncoder(
            Encoder(tokenizer, settings.formatter, recipe.options), max_seq_length=keys.seq_length, outcome=STREAMED
        ),
        source=recipe.source,
        max_seq_length=keys.seq_length,
        global_batch_size=keys.global_batch_size,
        seed=keys.seed,
        shuffle_buffer=DEFAULT_SHUFFLE_BUFFER if keys.sft_shuffle_buffer is None else keys.sft_shuffle_buffer,
        packing=keys.packing,
        bad_rows=keys.sft_bad_rows,
        quarantine_path=None if quarantine is None else quarantine / f"{TRAIN_SPLIT}.jsonl",
        identity=facts,
        state=state,
    )
    writes_bos = settings.formatter.writes_bos
    if VALIDATION_SPLIT not in jobs:
        return StreamedData(stream, None, writes_bos)
    job = jobs[VALIDATION_SPLIT]
    folder = _prepared(job, config, settings)
    if quarantine is not None:
        _copy_quarantine({VALIDATION_SPLIT: folder}, to=quarantine, names=(VALIDATION_SPLIT,))
    source = Source(open_prepared(folder, VALIDATION_SPLIT), name=_name_of_validation(keys))
    validation = SFTDataset.from_tokenized([source], settings, job.recipe.files)
    return StreamedData(stream, validation, writes_bos)


def _name_of_validation(keys: TrainerConfig) -> str:
    """What the loss of validation data with files of their own is told under."""
    [name] = names_of_sources([keys.sft_validation_dataset_name or keys.sft_validation_split or VALIDATION_SPLIT])
    return name


def _checked_jobs(config: TrainConfig, tokenizer: SFTTokenizer) -> tuple[dict[str, ShardJob], DatasetSettings]:
    """How the data of a run are made, once it is known that they can be trained."""
    jobs = jobs_of_run(config.trainer, seq_length=config.trainer.seq_length)
    settings = _settings(config, tokenizer)
    settings.check([file for job in jobs.values() for file in job.recipe.files])
    return jobs, settings


def _settings(config: TrainConfig, tokenizer: SFTTokenizer) -> DatasetSettings:
    keys = config.trainer
    formatter = load_formatter(
        keys.sft_conversation_format, tokenizer, keys.sft_chat_template, keys.sft_chat_template_kwargs
    )
    return DatasetSettings(
        tokenizer=tokenizer,
        formatter=formatter,
        max_seq_length=keys.seq_length,
        seed=keys.seed,
        options=build_options(keys),
        packing=keys.packing,
    )


def _prepared(job: ShardJob, config: TrainConfig, settings: DatasetSettings) -> Path:
    told_s = time.monotonic()

    def tell(progress: Progress) -> None:
        nonlocal told_s
        if time.monotonic() - told_s >= _SECONDS_BETWEEN_LINES:
            told_s = time.monotonic()
            logger.info("preparing data: %s rows, %.0f MB read", f"{progress.num_rows:,}", progress.num_bytes / 1e6)

    return prepare_or_wait(
        job,
        cache_dir_of(config),
        num_workers=num_cores(),
        on_progress=tell,
        on_message=logger.info,
        encoder=Encoder(settings.tokenizer, settings.formatter, job.recipe.options),
    )


def _copy_quarantine(
    folders: Mapping[str, Path], *, to: Path, names: Sequence[str] = (TRAIN_SPLIT, VALIDATION_SPLIT)
) -> None:
    """Put the rows that are not valid where the run's output is; files of an earlier run go away."""
    for name in {*names, *folders}:
        target = to / f"{name.replace(' ', '_')}.jsonl"
        source = folders[name] / QUARANTINE if name in folders else None
        if source is None or not source.exists():
            target.unlink(missing_ok=True)
            continue
        to.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part")
        shutil.copyfile(source, part)
        part.replace(target)
