# SPDX-License-Identifier: Apache-2.0
"""From data files to the tokenized conversations of a split, and a ledger of every row.

N: conversations. T: tokens of one of them. K: its token spans.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from primus.chat.conversations import Reading, SourceOptions, read_conversations
from primus.chat.formats import AUTO, FORMATS
from primus.chat.messages import Conversation
from primus.errors import ConversationError, DataError
from primus.sft.encoding import EncodedConversation, SuperviseTurns, encode_conversation
from primus.sft.formatters import ConversationFormatter
from primus.sft.ledger import NOTHING_TO_TRAIN, OVERLONG, TRAINED, VALIDATION, Ledger
from primus.sft.quarantine import Quarantine
from primus.sft.sources import TRAIN_SPLIT, VALIDATION_SPLIT, split_of
from primus.sft.tokenizer import SFTTokenizer
from primus.sft.truncation import truncate_right

Truncation = Literal["error", "drop", "right"]
BadRows = Literal["error", "quarantine"]

# Problems that an error message lists; the rest is counted.
_MAX_LISTED = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodingOptions:
    """What is a target, and what happens to rows that do not fit.

    Attributes:
        supervise_end_of_turn: Whether the end of a trained turn is a target.
        supervise_turns: Which assistant turns are targets.
        truncation: What happens to a conversation of more than `max_seq_length` + 1 tokens.
        bad_rows: Whether rows that are not valid stop everything, or are set aside.
        messages_field: The field, or fields, with a row's messages.
        source_format: Name of the format of the rows; `auto` recognises that of each.
        add_bos: Begin with BOS; None does what the tokenizer does by itself.
        add_eos: End with EOS.

    Raises:
        ValueError: If an option has a value that does not exist.
    """

    supervise_end_of_turn: bool = False
    supervise_turns: SuperviseTurns = "all"
    truncation: Truncation = "error"
    bad_rows: BadRows = "error"
    messages_field: str | tuple[str, ...] = "messages"
    source_format: str = AUTO
    add_bos: bool | None = None
    add_eos: bool = False

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("supervise_turns", self.supervise_turns, get_args(SuperviseTurns)),
            ("truncation", self.truncation, get_args(Truncation)),
            ("bad_rows", self.bad_rows, get_args(BadRows)),
        ):
            if value not in choices:
                raise ValueError(f"{name} is {value!r}, not one of {', '.join(choices)}")
        if not self.messages_field:
            raise ValueError("messages_field names no field")
        formats = [AUTO, *(name for name in FORMATS if name != "columns")]
        if self.source_format not in formats:
            raise ValueError(f"source_format is {self.source_format!r}, not one of {', '.join(formats)}")

    @property
    def source(self) -> SourceOptions:
        """How rows are read."""
        return SourceOptions(format=self.source_format, messages_field=self.messages_field)


class TokenizedDataset:
    """The tokenized conversations of a split, in the order of the files, as flat arrays.

    Args:
        conversations: The encoded conversations.
        content_hashes: The content hash of each, for finding a conversation in another split.
        ledger: What became of every row that was read.
    """

    def __init__(
        self, conversations: Sequence[EncodedConversation], *, content_hashes: Sequence[str], ledger: Ledger
    ) -> None:
        self.ledger = ledger
        self.content_hashes = tuple(content_hashes)
        self.origins = tuple(c.origin for c in conversations)
        self.num_tokens_N = np.array([len(c.tokens_T) for c in conversations], dtype=np.int64)
        self.num_targets_N = np.array([c.num_targets for c in conversations], dtype=np.int64)
        self._tokens = _concatenate([c.tokens_T.astype(np.int32) for c in conversations], np.int32)
        self._token_bounds = np.concatenate([[0], np.cumsum(self.num_tokens_N)])
        self._span_bounds = np.concatenate([[0], np.cumsum([len(c.turns_K) for c in conversations], dtype=np.int64)])
        self._spans = _concatenate([c.token_spans_K2.astype(np.int32) for c in conversations], np.int32).reshape(-1, 2)
        self._turns = _concatenate([c.turns_K.astype(np.int32) for c in conversations], np.int32)
        self._is_end = _concatenate([c.is_end_K for c in conversations], np.bool_)
        self._weights = _concatenate([c.weights_K for c in conversations], np.float32)
        digest = hashlib.blake2b(digest_size=16)
        for array in (
            self.num_tokens_N,
            self._tokens,
            self._span_bounds,
            self._spans,
            self._turns,
            self._is_end,
            self._weights,
        ):
            digest.update(np.ascontiguousarray(array).tobytes())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.origins)

    def __getitem__(self, index: int) -> EncodedConversation:
        """The conversation with an index; its arrays are views where possible."""
        if not 0 <= index < len(self):
            raise IndexError(f"conversation {index} of {len(self)}")
        tokens = slice(self._token_bounds[index], self._token_bounds[index + 1])
        spans = slice(self._span_bounds[index], self._span_bounds[index + 1])
        return EncodedConversation(
            tokens_T=self._tokens[tokens].astype(np.int64),
            token_spans_K2=self._spans[spans].astype(np.int64),
            turns_K=self._turns[spans].astype(np.int64),
            is_end_K=self._is_end[spans],
            weights_K=self._weights[spans],
            origin=self.origins[index],
        )


@dataclass
class _Split:
    conversations: list[EncodedConversation] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)


def tokenize_files(
    files: Sequence[Path],
    *,
    formatter: ConversationFormatter,
    tokenizer: SFTTokenizer,
    max_seq_length: int,
    options: EncodingOptions,
    outcome: Literal["trained", "validation"] = TRAINED,
    validation_fraction: float = 0.0,
    quarantine_path: Path | None = None,
) -> tuple[TokenizedDataset, TokenizedDataset]:
    """Read, parse, split and tokenize files.

    Args:
        files: Data files.
        formatter: Gives the text.
        tokenizer: Gives the tokens.
        max_seq_length: Positions of a training sequence; a conversation may have one token more.
        options: What is a target, and what happens to rows that do not fit.
        outcome: What the rows are used for.
        validation_fraction: Share of the rows held out, chosen by how conversations open.
        quarantine_path: Where bad rows are written, with `bad_rows` quarantine; None only counts them.

    Returns:
        The conversations that are not held out, and those that are. Both share one ledger. Rows that belong together
        have one outcome; if any branch of a tree is not valid, the whole row is not.

    Raises:
        DataError: If a file can't be read; with `bad_rows` error, if any row is bad: the first ones are listed and the
            rest is counted.
        ValueError: If `max_seq_length` or `validation_fraction` is out of range.
    """
    if max_seq_length < 1:
        raise ValueError(f"max_seq_length is {max_seq_length}, not at least 1")
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"validation_fraction is {validation_fraction}, not at least 0 and below 1")
    ledger = Ledger()
    splits = {TRAIN_SPLIT: _Split(), VALIDATION_SPLIT: _Split()}
    problems: list[str] = []
    with Quarantine(quarantine_path if options.bad_rows == "quarantine" else None) as quarantine:
        for reading in read_conversations(files, options.source):
            try:
                conversations = _conversations(reading)
                ledger.ignored_fields.update({name for c in conversations for name in c.ignored_fields})
                side = _side(conversations, validation_fraction=validation_fraction)
                encoded = [
                    _encode(
                        conversation,
                        formatter=formatter,
                        tokenizer=tokenizer,
                        max_seq_length=max_seq_length,
                        options=options,
                    )
                    for conversation in conversations
                ]
            except ConversationError as exc:
                problems.append(str(exc))
                for row in reading.rows:
                    ledger.record(f"bad:{exc.reason}", origin=row.origin)
                    quarantine.write(row, reason=exc.reason, error=str(exc))
                continue
            used = VALIDATION if side == VALIDATION_SPLIT else outcome
            outcomes = [_outcome(one, ledger, used=used, max_tokens=max_seq_length + 1) for one in encoded]
            for conversation, one, what in zip(conversations, encoded, outcomes, strict=True):
                if what == used:
                    splits[side].conversations.append(one)
                    splits[side].hashes.append(conversation.content_hash)
            ledger.record_together(
                used if used in outcomes else outcomes[0],
                origins=[row.origin for row in reading.rows],
                num_conversations=outcomes.count(used),
                num_dropped=len(outcomes) - outcomes.count(used),
            )
        if problems and options.bad_rows == "error":
            raise DataError(*_listed(problems, ledger.num_rows))
    train, held_out = (
        TokenizedDataset(split.conversations, content_hashes=split.hashes, ledger=ledger) for split in splits.values()
    )
    return train, held_out


def _outcome(encoded: EncodedConversation, ledger: Ledger, *, used: str, max_tokens: int) -> str:
    """What becomes of one conversation; counts what is noticed about it."""
    ledger.num_splits += encoded.num_splits
    if len(encoded.tokens_T) > max_tokens:
        return OVERLONG
    ledger.num_truncated += encoded.is_truncated
    ledger.num_untrained_turns += encoded.num_untrained_turns
    return NOTHING_TO_TRAIN if encoded.num_targets == 0 else used


def _conversations(reading: Reading) -> tuple[Conversation, ...]:
    if reading.error is not None:
        raise reading.error
    return reading.conversations


def _side(conversations: Sequence[Conversation], *, validation_fraction: float) -> str:
    sides = {split_of(conversation, validation_fraction=validation_fraction) for conversation in conversations}
    if len(sides) > 1:
        raise ConversationError(
            f"{conversations[0].origin}: the branches of the tree begin with different questions, which fall on both"
            " sides of sft_validation_fraction; name files to validate on",
            reason="split",
        )
    return sides.pop()


def _encode(
    conversation: Conversation,
    *,
    formatter: ConversationFormatter,
    tokenizer: SFTTokenizer,
    max_seq_length: int,
    options: EncodingOptions,
) -> EncodedConversation:
    encoded = encode_conversation(
        conversation,
        formatter=formatter,
        tokenizer=tokenizer,
        supervise_end_of_turn=options.supervise_end_of_turn,
        supervise_turns=options.supervise_turns,
        add_bos=options.add_bos,
        add_eos=options.add_eos,
    )
    if options.truncation == "right":
        return truncate_right(encoded, max_tokens=max_seq_length + 1)
    if options.truncation == "error" and len(encoded.tokens_T) > max_seq_length + 1:
        raise ConversationError(
            f"{conversation.origin}: the conversation has {len(encoded.tokens_T)} tokens, but seq_length"
            f" {max_seq_length}"
            f" holds {max_seq_length + 1}; raise seq_length, or set sft_truncation to drop or right",
            reason=OVERLONG,
        )
    return encoded


def _listed(problems: Sequence[str], num_rows: int) -> list[str]:
    listed = list(problems[:_MAX_LISTED])
    if len(problems) > _MAX_LISTED:
        listed.append(
            f"... {len(problems) - _MAX_LISTED} more of {num_rows} rows are bad; set sft_bad_rows: quarantine to see"
            " all of"
            " them in a file and train the rest"
        )
    return listed


def _concatenate(arrays: Sequence[Any], dtype: Any) -> Any:
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype=dtype)


def shared_conversations(first: TokenizedDataset, second: TokenizedDataset) -> Iterator[tuple[str, str]]:
    """The origins, in both, of conversations that stand in two data sets."""
    places = dict(zip(first.content_hashes, first.origins, strict=True))
    for content_hash, origin in zip(second.content_hashes, second.origins, strict=True):
        if content_hash in places:
            yield places[content_hash], origin
