# SPDX-License-Identifier: Apache-2.0
"""Conversations as the tensors that Megatron's batch expects.

S: positions of a training sequence, `max_seq_length`.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from primus.backends.megatron.core.datasets.settings import DatasetSettings, load_formatter
from primus.backends.megatron.core.datasets.training_sequences import Source, TrainingSequences
from primus.errors import ConfigError, DataError
from primus.sft.dataset import (
    BadRows,
    EncodingOptions,
    TokenizedDataset,
    Truncation,
    shared_conversations,
)
from primus.sft.encoding import SuperviseTurns
from primus.sft.formatters import (
    AlpacaFormatter,
    ConversationFormatter,
    OpenAIMessagesFormatter,
    RenderedConversation,
    create_formatter,
)
from primus.sft.ledger import Ledger
from primus.sft.packing import Method
from primus.sft.sources import TRAIN_SPLIT, VALIDATION_SPLIT, require_folder, resolve_files
from primus.sft.tokenizer import load_tokenizer

logger = logging.getLogger("primus")

DatasetName = str | Path | Sequence[str | Path]


class SFTDataset(TrainingSequences):
    """The training sequences of one split, tokenized when the data set is made: one conversation each, or packs.

    Args:
        dataset_name: A `.jsonl`, `.json` or `.parquet` file (the first two also `.gz` or `.zst`), a pattern with `*`, a
            folder with a file per split, or several of these. Rows with messages and single-turn rows mix.
        tokenizer: Anything that `load_tokenizer` takes.
        max_seq_length: Positions of a training sequence, S. A conversation of S + 1 tokens fits, since its last token
            is only predicted.
        split: The split of a folder. With `validation_fraction`, `train` is what is not held out of the files, and
            `validation` is what is.
        formatter: A format's name, or a formatter.
        seed: Of `order`. The data set itself is in the order of the files.
        supervise_end_of_turn: Train the end of each trained turn; without it a model never learns to stop.
        supervise_turns: `all` assistant turns, or the `last` one of each conversation.
        truncation: `error`, `drop` or `right`; all three are counted in the ledger.
        bad_rows: `error` or `quarantine`.
        quarantine_path: Where quarantined rows are written with their reasons; None only counts them.
        messages_field: The field, or fields, with a row's messages.
        source_format: Name of the format of the rows; `auto` recognises that of each.
        add_bos: Begin with BOS; None does what the tokenizer does by itself.
        add_eos: End with EOS, which is never a target.
        validation_fraction: Share of the rows held out, chosen by how conversations open.
        chat_template: A file with the chat template of the format `template`; None takes the tokenizer's.
        chat_template_kwargs: What the chat template is given besides the messages.
        packing: `none`: each conversation has a training sequence of its own. `sequential` or `best_fit`: several share
            one, those that follow each other or those that fill it best.

    Attributes:
        tokenizer: The loaded tokenizer.
        formatter: The formatter.
        options: What is a target, and what happens to rows that do not fit.
        ledger: What became of every row.

    Raises:
        ConfigError: If the formatter is unknown, or a folder has no such split.
        TokenizerError: If the tokenizer can't be used.
        DataError: If a file can't be read, rows are bad, or nothing is left to train.
    """

    def __init__(
        self,
        dataset_name: DatasetName,
        tokenizer: object,
        max_seq_length: int,
        split: str = TRAIN_SPLIT,
        formatter: str | ConversationFormatter = "openai",
        seed: int = 1234,
        *,
        supervise_end_of_turn: bool = False,
        supervise_turns: SuperviseTurns = "all",
        truncation: Truncation = "error",
        bad_rows: BadRows = "error",
        quarantine_path: Path | None = None,
        messages_field: str | Sequence[str] = "messages",
        source_format: str = "auto",
        add_bos: bool | None = None,
        add_eos: bool = False,
        validation_fraction: float = 0.0,
        chat_template: str | Path | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        packing: Method = "none",
    ) -> None:
        loaded = load_tokenizer(tokenizer)
        settings = DatasetSettings(
            tokenizer=loaded,
            formatter=load_formatter(formatter, loaded, chat_template, chat_template_kwargs),
            max_seq_length=max_seq_length,
            seed=seed,
            options=EncodingOptions(
                supervise_end_of_turn=supervise_end_of_turn,
                supervise_turns=supervise_turns,
                truncation=truncation,
                bad_rows=bad_rows,
                messages_field=messages_field if isinstance(messages_field, str) else tuple(messages_field),
                source_format=source_format,
                add_bos=add_bos,
                add_eos=add_eos,
            ),
            packing=packing,
        )
        if validation_fraction > 0 and split not in {TRAIN_SPLIT, VALIDATION_SPLIT}:
            raise ConfigError(
                f"split: {split!r} is neither {TRAIN_SPLIT!r} nor {VALIDATION_SPLIT!r}, the two that a"
                " validation_fraction"
                " makes; name one of them"
            )
        held_out = validation_fraction > 0 and split == VALIDATION_SPLIT
        files = resolve_files(dataset_name, split=TRAIN_SPLIT if validation_fraction > 0 else split)
        pair = settings.tokenize(files, validation_fraction=validation_fraction, quarantine_path=quarantine_path)
        self._set_up(pair[held_out], settings, files)

    @classmethod
    def from_tokenized(
        cls, data: TokenizedDataset | Sequence[Source], settings: "DatasetSettings", files: Sequence[Path]
    ) -> "SFTDataset":
        """The training sequences of conversations that are tokenized already, of one source or of several."""
        dataset = cls.__new__(cls)
        dataset._set_up(data, settings, files)  # noqa: SLF001  # its own class
        return dataset

    def _set_up(
        self, sources: TokenizedDataset | Sequence[Source], settings: "DatasetSettings", files: Sequence[Path]
    ) -> None:
        parts = [sources] if isinstance(sources, TokenizedDataset) else [source.data for source in sources]
        refuse_empty(TokenizedDataset.joined(parts), settings, files)
        super().__init__(
            sources,
            packing=settings.packing,
            max_seq_length=settings.max_seq_length,
            pad_id=settings.tokenizer.pad_id,
            seed=settings.seed,
        )
        self.tokenizer = settings.tokenizer
        self.formatter = settings.formatter
        self.options = settings.options
        self.ledger: Ledger = self.data.ledger

    def shared_with(self, other: "SFTDataset") -> Iterator[tuple[str, str]]:
        """The origins, here and there, of conversations that stand in both data sets."""
        return shared_conversations(self.data, other.data)


def build_train_valid_test_datasets(
    dataset_name: DatasetName,
    tokenizer: object,
    max_seq_length: int,
    train_val_test_num_samples: Sequence[int] | None = None,
    formatter: str | ConversationFormatter = "openai",
    seed: int = 1234,
    *,
    split: str = TRAIN_SPLIT,
    validation_dataset_name: DatasetName | None = None,
    validation_split: str | None = None,
    validation_fraction: float = 0.0,
    test_dataset_name: DatasetName | None = None,
    test_split: str | None = None,
    quarantine_dir: Path | None = None,
    options: EncodingOptions | None = None,
    chat_template: str | Path | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    packing: Method = "none",
) -> tuple[SFTDataset, SFTDataset | None, SFTDataset | None]:
    """Build the data sets of a run.

    Args:
        dataset_name: Training data, as for `SFTDataset`.
        tokenizer: Anything that `load_tokenizer` takes.
        max_seq_length: Positions of a training sequence.
        train_val_test_num_samples: As Megatron's providers are given it; a 0 for validation or test leaves that one
            out, and a number asks for it. None takes what the other arguments name.
        formatter: A format's name, or a formatter.
        seed: Of the order.
        split: The split of a folder that is trained on.
        validation_dataset_name: Files to validate on. At most one of the three validation arguments may be given.
        validation_split: A split of the folder `dataset_name` to validate on.
        validation_fraction: Share of the training files' rows to hold out, chosen by how conversations open.
        test_dataset_name: Files to test on.
        test_split: A split of the folder `dataset_name` to test on.
        quarantine_dir: Folder for bad rows, one file per split; None only counts them.
        options: What is a target, and what happens to rows that do not fit.
        chat_template: A file with the chat template of the format `template`; None takes the tokenizer's.
        chat_template_kwargs: What the chat template is given besides the messages.
        packing: How conversations share training sequences, as for `SFTDataset`; the same in all three.

    Returns:
        Training, validation and test data; the last two None if they are not asked for. A conversation that stands in
        the training data and in one of the others is warned about.

    Raises:
        ConfigError: If validation is asked for in several ways, or by number but in no way.
        DataError: If a file can't be read, rows are bad, or a split is left without a conversation.
        TokenizerError: If the tokenizer can't be used.
    """
    ways = [bool(validation_dataset_name), bool(validation_split), validation_fraction > 0]
    if sum(ways) > 1:
        raise ConfigError(
            "validation: at most one of sft_validation_dataset_name, sft_validation_split and"
            " sft_validation_fraction may"
            " be set; keep one"
        )
    loaded = load_tokenizer(tokenizer)
    settings = DatasetSettings(
        tokenizer=loaded,
        formatter=load_formatter(formatter, loaded, chat_template, chat_template_kwargs),
        max_seq_length=max_seq_length,
        seed=seed,
        options=options or EncodingOptions(),
        packing=packing,
    )
    if train_val_test_num_samples is not None and len(train_val_test_num_samples) != len(("train", "valid", "test")):
        raise ValueError(f"train_val_test_num_samples has {len(train_val_test_num_samples)} numbers, not 3")
    for what, named in (("sft_validation_split", validation_split), ("test_split", test_split)):
        if named is not None:
            require_folder(dataset_name, split=named, key=what)
    for unused in ("validation", "test"):
        if quarantine_dir is not None:
            (quarantine_dir / f"{unused}.jsonl").unlink(missing_ok=True)
    wanted = [bool(num) for num in train_val_test_num_samples or (1, any(ways), bool(test_dataset_name or test_split))]
    files = resolve_files(dataset_name, split=split)
    train_data, held_out = settings.tokenize(
        files, validation_fraction=validation_fraction, quarantine_path=_in(quarantine_dir, "train")
    )
    train = SFTDataset.from_tokenized(train_data, settings, files)

    def build(name: DatasetName | None, other_split: str | None, what: str) -> SFTDataset:
        if name is None and other_split is None:
            raise ConfigError(f"{what}: {what} data is asked for, but none is named; set a file, a split or a fraction")
        other = resolve_files(name) if name is not None else resolve_files(dataset_name, split=other_split or what)
        data, _ = settings.tokenize(other, quarantine_path=_in(quarantine_dir, what), is_validation=True)
        return SFTDataset.from_tokenized(data, settings, other)

    valid = None
    if wanted[1]:
        if validation_fraction > 0:
            valid = SFTDataset.from_tokenized(held_out, settings, files)
        else:
            valid = build(validation_dataset_name, validation_split, "validation")
    test = build(test_dataset_name, test_split, "test") if wanted[2] else None
    for what, other in (("validation", valid), ("test", test)):
        warn_about_leakage(train, other, what)
    return train, valid, test


def _in(folder: Path | None, split: str) -> Path | None:
    return None if folder is None else folder / f"{split}.jsonl"


def refuse_empty(data: TokenizedDataset, settings: DatasetSettings, files: Sequence[Path]) -> None:
    """Refuse data without a conversation.

    Args:
        data: The data.
        settings: How they were made.
        files: What they were made from.

    Raises:
        DataError: If there is none; the message says what became of the rows.
    """
    if not len(data) and (used := data.ledger.num_used):
        raise DataError(
            f"{', '.join(map(str, files))}: all {used} conversations fall on one side of"
            " sft_validation_fraction, and"
            " none on the other (those that open alike stay together); choose another fraction, or name files to"
            " validate on"
        )
    if not len(data) and data.ledger.num_bad == data.ledger.num_rows:
        raise DataError(
            f"{', '.join(map(str, files))}: all {data.ledger.num_rows} rows are bad; look at them with"
            " sft_bad_rows: error, or in the quarantine"
        )
    if not len(data):
        summary = "; ".join(line.strip() for line in data.ledger.lines())
        raise DataError(
            f"{', '.join(map(str, files))}: no conversation is left to train with seq_length"
            f" {settings.max_seq_length} ({summary}); raise seq_length, or look at the rows"
        )


def warn_about_leakage(train: SFTDataset, other: SFTDataset | None, what: str) -> None:
    """Warn if conversations that are trained also stand in data that is to tell how good the model is.

    Args:
        train: The training data.
        other: The other data, or None.
        what: Its name.
    """
    shared = [] if other is None else list(train.shared_with(other))
    if shared and other is not None:
        logger.warning(
            "%d of %d %s conversations are also trained on (%s is %s); the %s loss does not tell what the model does"
            " with"
            " new conversations",
            len(shared),
            len(other),
            what,
            shared[0][1],
            shared[0][0],
            what,
        )


__all__ = [
    "AlpacaFormatter",
    "ConversationFormatter",
    "OpenAIMessagesFormatter",
    "RenderedConversation",
    "SFTDataset",
    "build_train_valid_test_datasets",
    "create_formatter",
]
