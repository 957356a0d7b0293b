# SPDX-License-Identifier: Apache-2.0
"""From batches of rows to training sequences: the one way to them, in memory, on disk, and on any machine.

N: sequences. T: tokens of all of them. K: their token spans.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from primus.chat.conversations import ConversationBatch, Reading, SourceOptions, read_batches
from primus.chat.messages import Conversation
from primus.chat.reading import Row
from primus.errors import ConversationError
from primus.sft.encoding import EncodedConversation
from primus.sft.flat_encoding import FlatConversations, encode_conversations
from primus.sft.ledger import NOTHING_TO_TRAIN, OVERLONG, TRAINED, VALIDATION, Ledger
from primus.sft.recipe import Encoder, Recipe
from primus.sft.sequences import SequenceArrays
from primus.sft.sources import TRAIN_SPLIT, VALIDATION_SPLIT, split_of
from primus.sft.truncation import truncate
from primus.sft.weighting import weigh
from primus.sft.workers import Job

Outcome = Literal["trained", "validation", "streamed"]

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
        readings = list(batch.readings())
        sides = [self._side(reading) for reading in readings]
        conversations = [
            conversation
            for reading, side in zip(readings, sides, strict=True)
            if isinstance(side, str)
            for conversation in reading.conversations
        ]
        work = _Work(conversations, encode_conversations(conversations, self._encoder))
        first = 0
        for reading, side in zip(readings, sides, strict=True):
            work.ledger.ignored_fields.update({name for c in reading.conversations for name in c.ignored_fields})
            if isinstance(side, ConversationError):
                work.refuse(reading, side)
                continue
            last = first + len(reading.conversations)
            try:
                self._take(reading, side, range(first, last), work)
            except ConversationError as exc:
                work.refuse(reading, exc)
            first = last
        splits = {name: self._weigh(collected, work.ledger) for name, collected in work.splits.items()}
        return EncodedBatch(splits, work.ledger, tuple(work.bad_rows), tuple(work.problems), len(batch.rows.lines))

    def _weigh(self, collected: "_Collected", ledger: Ledger) -> SequenceArrays:
        """The sequences of a split with the weights that the options give them."""
        arrays, options = collected.arrays(), self._encoder.options
        if options.weighs_evenly or not len(arrays):
            return arrays
        weighed = weigh(
            token_spans_K2=arrays.token_spans_K2,
            turns_K=arrays.turns_K,
            weights_K=arrays.weights_K,
            span_bounds_N1=arrays.span_bounds_N1,
            conversation_N=np.array(collected.conversations),
            schedule=options.schedule,
            normalizer=options.loss_normalizer,
            dataset_weight=options.loss_weight,
        )
        arrays = replace(arrays, **weighed._asdict())
        # The turns of a window may all have become context.
        is_trained_N = weighed.num_targets_N > 0
        ledger.num_windows -= int((~is_trained_N).sum())
        return arrays if is_trained_N.all() else arrays.where(is_trained_N)

    def _side(self, reading: Reading) -> str | ConversationError:
        """The split of what rows gave, or why they can't be used."""
        if reading.error is not None:
            return reading.error
        if not self._fraction:
            return TRAIN_SPLIT
        conversations = reading.conversations
        sides = {split_of(conversation, validation_fraction=self._fraction) for conversation in conversations}
        if len(sides) == 1:
            return sides.pop()
        return ConversationError(
            f"{conversations[0].origin}: the branches of the tree begin with different questions, which fall on both"
            " sides of sft_validation_fraction; name files to validate on",
            reason="split",
        )

    def _take(self, reading: Reading, side: str, places: range, work: "_Work") -> None:
        """Put the conversations of rows where they belong.

        Raises:
            ConversationError: If one of them can't be used; then none is.
        """
        used = VALIDATION if side == VALIDATION_SPLIT else self._outcome
        noticed = Ledger()
        fitted = [self._fit(place, work, noticed) for place in places]
        work.ledger.add(noticed)
        outcomes = [fit if isinstance(fit, str) else used for fit in fitted]
        collected = work.splits[side]
        for place, fit in zip(places, fitted, strict=True):
            if isinstance(fit, int):
                collected.add_row(fit, place)
            elif isinstance(fit, tuple):
                collected.add_alone(fit, work.conversations[place], place)
        work.ledger.record_together(
            used if used in outcomes else outcomes[0],
            origins=[row.origin for row in reading.rows],
            num_conversations=outcomes.count(used),
            num_dropped=len(outcomes) - outcomes.count(used),
        )

    def _fit(self, place: int, work: "_Work", noticed: Ledger) -> int | tuple[EncodedConversation, ...] | str:
        """The row of the flat arrays that a conversation is, or its sequences, or why there are none."""
        max_tokens = self._max_seq_length + 1
        row = work.flat.rows.get(place)
        if row is not None and work.num_tokens_N[row] <= max_tokens:
            return row if work.num_targets_N[row] else NOTHING_TO_TRAIN
        conversation = work.conversations[place]
        encoded = self._encoder.trace(conversation).encoded if row is not None else work.flat.alone[place]
        if isinstance(encoded, ConversationError):
            raise encoded
        if len(encoded.tokens_T) > max_tokens:
            return self._shorten(conversation, num_tokens=len(encoded.tokens_T), noticed=noticed)
        noticed.num_splits += encoded.num_splits
        return (encoded,) if encoded.num_targets else NOTHING_TO_TRAIN

    def _shorten(
        self, conversation: Conversation, *, num_tokens: int, noticed: Ledger
    ) -> tuple[EncodedConversation, ...] | str:
        """What is kept of a conversation that is too long."""
        max_tokens = self._max_seq_length + 1
        policy = self._encoder.options.truncation
        if policy == "error":
            raise ConversationError(
                f"{conversation.origin}: the conversation has {num_tokens} tokens, but seq_length"
                f" {self._max_seq_length} holds {max_tokens}; raise seq_length, or set sft_truncation to window,"
                " keep_last_turns, right or drop",
                reason=OVERLONG,
            )
        if policy == "drop":
            return OVERLONG
        kept = truncate(
            self._encoder.trace(conversation), policy=policy, max_tokens=max_tokens, encode=self._encoder.trace
        )
        noticed.num_truncated += 1
        noticed.num_untrained_turns += kept.num_untrained_turns
        noticed.num_splits += sum(sequence.num_splits for sequence in kept.sequences)
        noticed.num_windows += max(len(kept.sequences) - 1, 0)
        return kept.sequences or NOTHING_TO_TRAIN


class _Work:
    """What becomes of a batch while it is gone through."""

    def __init__(self, conversations: Sequence[Conversation], flat: FlatConversations) -> None:
        self.conversations = conversations
        self.flat = flat
        self.num_tokens_N: list[int] = flat.arrays.num_tokens_N.tolist()
        self.num_targets_N: list[int] = flat.arrays.num_targets_N.tolist()
        self.ledger = Ledger()
        self.bad_rows: list[BadRow] = []
        self.problems: list[str] = []
        self.splits = {name: _Collected(flat.arrays) for name in (TRAIN_SPLIT, VALIDATION_SPLIT)}

    def refuse(self, reading: Reading, error: ConversationError) -> None:
        """Set rows aside that belong together."""
        self.problems.append(str(error))
        for row in reading.rows:
            self.ledger.record(f"bad:{error.reason}", origin=row.origin)
            self.bad_rows.append(BadRow(row, error.reason, str(error)))


class _Collected:
    """The sequences of a split: runs of rows of the flat arrays, and those between them that stand alone.

    Args:
        flat: The flat arrays.

    Attributes:
        conversations: For each sequence the number of its conversation in the batch.
    """

    def __init__(self, flat: SequenceArrays) -> None:
        self._flat = flat
        self._parts: list[SequenceArrays] = []
        self._run = range(0)
        self._alone: list[EncodedConversation] = []
        self._digests: list[bytes] = []
        self.conversations: list[int] = []

    def add_row(self, row: int, place: int) -> None:
        """Add a row of the flat arrays."""
        self.conversations.append(place)
        if self._alone or row != self._run.stop:
            self._end_part()
            self._run = range(row, row)
        self._run = range(self._run.start, row + 1)

    def add_alone(self, sequences: Sequence[EncodedConversation], conversation: Conversation, place: int) -> None:
        """Add the sequences of a conversation that was encoded by itself."""
        self.conversations += [place] * len(sequences)
        if self._run:
            self._end_part()
        self._alone += sequences
        self._digests += [conversation.content_digest] * len(sequences)

    def _end_part(self) -> None:
        if self._run:
            self._parts.append(self._flat.between(self._run.start, self._run.stop))
        if self._alone:
            self._parts.append(SequenceArrays.of_conversations(self._alone, content_hashes=self._digests))
        self._run, self._alone, self._digests = range(0), [], []

    def arrays(self) -> SequenceArrays:
        """All of them."""
        self._end_part()
        return self._parts[0] if len(self._parts) == 1 else SequenceArrays.concatenate(self._parts)


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
        return self.build().encode

    def build(self, encoder: Encoder | None = None) -> ShardEncoder:
        """What encodes batches.

        Args:
            encoder: The formatter and the tokenizer of the recipe, if they are loaded.

        Returns:
            The encoder of batches.
        """
        assert self.recipe.max_seq_length is not None, "a training sequence has a length"
        return ShardEncoder(
            encoder or self.recipe.build(),
            max_seq_length=self.recipe.max_seq_length,
            outcome=self.outcome,
            validation_fraction=self.validation_fraction,
        )


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
    yield from number_shards(files, read_batches(files, source))


def number_shards(
    files: Sequence[Path], batches: Iterable[ConversationBatch]
) -> Iterator[tuple[int, ConversationBatch]]:
    """Batches with the numbers of their shards.

    Args:
        files: Data files: all of them, or a group that `file_groups` gives.
        batches: Their batches.

    Yields:
        Number of the shard, counted from 0, and the batch.
    """
    starts = {group[0] for group in file_groups(files)}
    rest = iter(files)
    path: str | None = None
    shard, num_batches = -1, 0
    for batch in batches:
        is_first_of_group = batch.rows.path != path and next(rest) in starts
        path = batch.rows.path
        if is_first_of_group or num_batches == BATCHES_PER_SHARD:
            shard, num_batches = shard + 1, 0
        num_batches += 1
        yield shard, batch
