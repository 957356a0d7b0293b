# SPDX-License-Identifier: Apache-2.0
"""The data that a run trains on and validates on, and the account of their rows."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from primus.backends.megatron.checkpoint.folder import read_data_state
from primus.backends.megatron.core.datasets.sft_dataset import SFTDataset
from primus.backends.megatron.data.datasets import build_datasets, build_stream
from primus.backends.megatron.data.loading import AHEAD_PER_WORKER
from primus.config.schema import TrainConfig
from primus.sft.ledger import Ledger, write_ledgers
from primus.sft.sources import names_of_sources
from primus.sft.streaming import IndexedStream
from primus.sft.tokenizer import SFTTokenizer

logger = logging.getLogger("primus")


@dataclass(frozen=True, kw_only=True)
class RunData:
    """What a run reads."""

    train: SFTDataset | IndexedStream
    """Training data, prepared or streamed."""
    validation: SFTDataset | None
    """Validation data, or None."""
    writes_bos: bool
    """Whether the format writes BOS itself."""
    ledgers: Mapping[str, Ledger]
    """What became of every row of data that are prepared."""
    streamed: Mapping[str, Ledger]
    """The same of a stream, which is known when it has been read."""
    path: Path | None
    """Where ledgers are written; None on all ranks but the first."""

    @contextmanager
    def told_at_the_end(self) -> Iterator[None]:
        """Tell what became of the rows of a stream behind the block, also if it fails."""
        try:
            yield
            _tell(self.streamed)
        finally:
            if self.streamed and self.path is not None:
                write_ledgers({**self.streamed, **self.ledgers}, path=self.path)


def load_run_data(
    config: TrainConfig, *, tokenizer: SFTTokenizer, is_first_rank: bool, continues: Path | None
) -> RunData:
    """Prepare or open the data of a run, and tell and write what became of their rows.

    Args:
        config: The run.
        tokenizer: Its tokenizer.
        is_first_rank: Whether this process writes the ledgers and the rows that are not valid.
        continues: The checkpoint that the run goes on from, or None if it begins.

    Returns:
        The data.

    Raises:
        ConfigError: If no data is named.
        DataError: If the data can't be used.
        CheckpointError: If the run goes on on a stream, and the checkpoint does not say where.
    """
    if config.trainer.sft_streaming:
        state = None if continues is None else read_data_state(continues)
        data = _streamed(config, tokenizer, is_first_rank=is_first_rank, state=state)
    else:
        data = _prepared(config, tokenizer, is_first_rank=is_first_rank)
    _tell(data.ledgers)
    for name, sequences in (("train", data.train), ("validation", data.validation)):
        if isinstance(sequences, SFTDataset) and sequences.packing_in_words:
            logger.info("%s: %s sequences: %s", name, f"{len(sequences):,}", sequences.packing_in_words)
    if data.path is not None:
        write_ledgers(data.ledgers, path=data.path)
    return data


def _prepared(config: TrainConfig, tokenizer: SFTTokenizer, *, is_first_rank: bool) -> RunData:
    train, validation = build_datasets(config, tokenizer=tokenizer, writes_quarantine=is_first_rank)
    ledgers = {"train": train.ledger}
    if validation is not None and validation.ledger is not train.ledger:
        ledgers["validation"] = validation.ledger
    return RunData(
        train=train,
        validation=validation,
        writes_bos=train.formatter.writes_bos,
        ledgers=ledgers,
        streamed={},
        path=_ledger_path(config, is_first_rank=is_first_rank),
    )


def _streamed(
    config: TrainConfig, tokenizer: SFTTokenizer, *, is_first_rank: bool, state: Mapping[str, Any] | None
) -> RunData:
    stream, validation, writes_bos = build_stream(
        config, tokenizer=tokenizer, state=state, writes_quarantine=is_first_rank
    )
    # A step is asked for when it is loaded ahead, when it is trained, and when its state is saved.
    num_kept = 4 + AHEAD_PER_WORKER * config.trainer.num_workers
    return RunData(
        train=IndexedStream(
            stream,
            pad_id=tokenizer.pad_id,
            num_kept=num_kept,
            name=names_of_sources([config.trainer.sft_dataset_name or ""])[0],
        ),
        validation=validation,
        writes_bos=writes_bos,
        ledgers={} if validation is None else {"validation": validation.ledger},
        streamed={"train": stream.ledger},
        path=_ledger_path(config, is_first_rank=is_first_rank),
    )


def _ledger_path(config: TrainConfig, *, is_first_rank: bool) -> Path | None:
    return config.exp_dir / "logs" / "ledger.json" if is_first_rank else None


def _tell(ledgers: Mapping[str, Ledger]) -> None:
    for line in (line for ledger in ledgers.values() for line in ledger.lines()):
        logger.info("%s", line)
