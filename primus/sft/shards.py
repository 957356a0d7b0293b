# SPDX-License-Identifier: Apache-2.0
"""From batches of rows to training sequences: the one way to them, in memory, on disk, and on any machine.

N: sequences. T: tokens of all of them. K: their token spans.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from primus.chat.conversations import ConversationBatch, Reading, SourceOptions, read_batches
from primus.chat.messages import Conversation
from primus.chat.reading import Row
from primus.errors import ConversationError
from primus.sft.encoding import EncodedConversation
from primus.sft.ledger import NOTHING_TO_TRAIN, OVERLONG, TRAINED, VALIDATION, Ledger
from primus.sft.recipe import Encoder, Recipe
from primus.sft.sequences import SequenceArrays
from primus.sft.sources import TRAIN_SPLIT, VALIDATION_SPLIT, split_of
from primus.sft.truncation import truncate_right
from primus.sft.workers import Job

Outcome = Literal["trained", "validation"]

BATCHES_PER_SHARD = 64
_GROUP_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that is not a valid conversation.

    Attributes:
        row: The row.
        reason: Name of the rule that it breaks.
        error: What is wrong, as a complete message.
    """

    row: Row
    reason: str
    error: str


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """What a batch of rows gave.

    Attributes:
        splits: The sequences of each split, in the order of the rows.
        ledger: What became of every row.
        bad_rows: The rows that are not valid.
        problems: What is wrong with them; rows that belong together have one problem.
        num_bytes: Bytes of the rows, where they are lines.
    """

    splits: Mapping[str, SequenceArrays]
    ledger: Ledger
    bad_rows: tuple[BadRow, ...] = ()
    problems: tuple[str, ...] = ()
    num_bytes: int = 0


class ShardEncoder:
    """Turns batches of rows into training sequences; what it gives depends on the batch and on nothing else.

    Args:
        encoder: Renders and tokenizes.
        max_seq_length: Positions of a training sequence; a conversation may have one token more.
        outcome: What the rows are used for.
        validation_fraction: Share of the rows held out, chosen by how conversations open.

    Raises:
        ValueError: If `max_seq_length` or `validation_fraction` is out of range.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        max_seq_length: int,
        outcome: Outcome = TRAINED,
        validation_fraction: float = 0.0,
    ) -> None:
        if max_seq_length < 1:
            raise ValueError(f"max_seq_length is {max_seq_length}, not at least 1")
        if not 0 <= validation_fraction < 1:
            raise ValueError(f"validation_fraction is {validation_fraction}, not at least 0 and below 1")
        self._encoder = encoder
        self._max_seq_length = max_seq_length
        self._outcome = outcome
        self._fraction = validation_fraction

    def encode(self, batch: ConversationBatch) -> EncodedBatch:
        """The training sequences of a batch.

        Args:
            batch: The rows.

        Returns:
            Sequences, ledger and bad rows.

        Raises:
            EngineError: If the fast engine gives other ids than the reference.
            TokenizerError: If BOS or EOS is asked for and the tokenizer has none.
        """
        ledger = Ledger()
        sequences: dict[str, list[EncodedConversation]] = {TRAIN_SPLIT: [], VALIDATION_SPLIT: []}
        hashes: dict[str, list[bytes]] = {TRAIN_SPLIT: [], VALIDATION_SPLIT: []}
        bad_rows: list[BadRow] = []
        problems: list[str] = []
        for reading in batch.readings():
            try:
                conversations = _conversations(reading)
                ledger.ignored_fields.update({name for c in conversations for name in c.ignored_fields})
                side = self._side(conversations)
                encoded = [self._encode(conversation) for conversation in conversations]
            except ConversationError as exc:
                problems.append(str(exc))
                for row in reading.rows:
                    ledger.record(f"bad:{exc.reason}", origin=row.origin)
                    bad_rows.append(BadRow(row, exc.reason, str(exc)))
                continue
            used = VALIDATION if side == VALIDATION_SPLIT else self._outcome
            outcomes = [self._outcome_of(one, ledger, used=used) for one in encoded]
            for conversation, one, what in zip(conversations, encoded, outcomes, strict=True):
                if what == used:
                    sequences[side].append(one)
                    hashes[side].append(bytes.fromhex(conversation.content_hash))
            ledger.record_together(
                used if used in outcomes else outcomes[0],
                origins=[row.origin for row in reading.rows],
                num_conversations=outcomes.count(used),
                num_dropped=len(outcomes) - outcomes.count(used),
            )
        splits = {
            name: SequenceArrays.of_conversations(of_split, content_hashes=hashes[name])
            for name, of_split in sequences.items()
        }
        return EncodedBatch(splits, ledger, tuple(bad_rows), tuple(problems), len(batch.rows.lines))

    def _side(self, conversations: Sequence[Conversation]) -> str:
        if not self._fraction:
            return TRAIN_SPLIT
        sides = {split_of(conversation, validation_fraction=self._fraction) for conversation in conversations}
        if len(sides) > 1:
            raise ConversationError(
                f"{conversations[0].origin}: the branches of the tree begin with different questions, which fall on"
                " both sides of sft_validation_fraction; name files to validate on",
                reason="split",
            )
        return sides.pop()

    def _encode(self, conversation: Conversation) -> EncodedConversation:
        encoded = self._encoder.trace(conversation).encoded
        policy = self._encoder.options.truncation
        if policy == "right":
            return truncate_right(encoded, max_tokens=self._max_seq_length + 1)
        if policy == "error" and len(encoded.tokens_T) > self._max_seq_length + 1:
            raise ConversationError(
                f"{conversation.origin}: the conversation has {len(encoded.tokens_T)} tokens, but seq_length"
                f" {self._max_seq_length} holds {self._max_seq_length + 1}; raise seq_length, or set sft_truncation to"
                " drop or right",
                reason=OVERLONG,
            )
        return encoded

    def _outcome_of(self, encoded: EncodedConversation, ledger: Ledger, *, used: str) -> str:
        """What becomes of one conversation; counts what is noticed about it."""
        ledger.num_splits += encoded.num_splits
        if len(encoded.tokens_T) > self._max_seq_length + 1:
            return OVERLONG
        ledger.num_truncated += encoded.is_truncated
        ledger.num_untrained_turns += encoded.num_untrained_turns
        return NOTHING_TO_TRAIN if encoded.num_targets == 0 else used


def _conversations(reading: Reading) -> tuple[Conversation, ...]:
    if reading.error is not None:
        raise reading.error
    return reading.conversations


@dataclass(frozen=True, slots=True)
class ShardJob(Job[ConversationBatch, EncodedBatch]):
    """Encoding in processes of its own.

    Attributes:
        recipe: How rows become sequences; its `max_seq_length` must be set.
        outcome: What the rows are used for.
        validation_fraction: Share of the rows held out.
    """

    recipe: Recipe
    outcome: Outcome = TRAINED
    validation_fraction: float = 0.0

    def start(self) -> Callable[[ConversationBatch], EncodedBatch]:
        """Load the tokenizer."""
        assert self.recipe.max_seq_length is not None, "a training sequence has a length"
        return ShardEncoder(
            self.recipe.build(),
            max_seq_length=self.recipe.max_seq_length,
            outcome=self.outcome,
            validation_fraction=self.validation_fraction,
        ).encode


def file_groups(files: Sequence[Path]) -> list[tuple[Path, ...]]:
    """Files that stand together, so that no shard has rows of two groups.

    Args:
        files: Data files, in order.

    Returns:
        The files in order, as few as have 64 MiB on disk together; what is not on disk stands alone.
    """
    groups: list[tuple[Path, ...]] = []
    current: list[Path] = []
    num_bytes = 0
    for file in files:
        current.append(file)
        num_bytes += file.stat().st_size if file.is_file() else _GROUP_BYTES
        if num_bytes >= _GROUP_BYTES:
            groups.append(tuple(current))
            current, num_bytes = [], 0
    return [*groups, tuple(current)] if current else groups


def shard_batches(files: Sequence[Path], source: SourceOptions) -> Iterator[tuple[int, ConversationBatch]]:
    """The batches of files, each with the number of its shard.

    A shard has 64 batches, each of about a megabyte of lines or 256 decoded rows, and ends where a group of files does.
    So the shards of a group can be made by themselves, on any machine.

    Args:
        files: Data files.
        source: How their rows are read.

    Yields:
        Number of the shard, from 0 and never decreasing, and the batch.
    """
    starts = {group[0] for group in file_groups(files)}
    rest = iter(files)
    path: str | None = None
    shard, num_batches = -1, 0
    for batch in read_batches(files, source):
        is_first_of_group = batch.rows.path != path and next(rest) in starts
        path = batch.rows.path
        if is_first_of_group or num_batches == BATCHES_PER_SHARD:
            shard, num_batches = shard + 1, 0
        num_batches += 1
        yield shard, batch
