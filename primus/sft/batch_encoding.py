# SPDX-License-Identifier: Apache-2.0
"""From a batch of rows to training sequences, and what became of every row.

Batches of usual rows go through in one piece: only rows that are too long, have no target or can't be encoded with the
others are looked at one by one. What comes out is the same.

N: sequences. T: tokens of all of them. K: their token spans.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

from primus.chat.conversations import ConversationBatch, Reading
from primus.chat.messages import Conversation
from primus.chat.plain_lines import PlainLines, read_plain_lines
from primus.chat.reading import Row
from primus.errors import ConversationError
from primus.sft.encoding import EncodedConversation
from primus.sft.flat_encoding import FlatConversations, PlainEncoder, encode_conversations, trace_alone
from primus.sft.ledger import NOTHING_TO_TRAIN, OVERLONG, TRAINED, VALIDATION, Ledger
from primus.sft.recipe import Encoder
from primus.sft.sequences import SequenceArrays, text_hash
from primus.sft.sources import TRAIN_SPLIT, VALIDATION_SPLIT, split_of, split_of_opening
from primus.sft.truncation import truncate
from primus.sft.weighting import weigh

Outcome = Literal["trained", "validation", "streamed"]


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
        self._plain = PlainEncoder(encoder)

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
        plain = read_plain_lines(batch)
        arrays = None if plain is None else self._plain.encode(plain)
        if plain is None or arrays is None:
            return self._encode_rows(batch)
        return self._encode_plain(plain, *arrays)

    def _encode_rows(self, batch: ConversationBatch) -> EncodedBatch:
        """Row by row, whatever they are."""
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
        return self._finished(work, num_bytes=len(batch.rows.lines))

    def _encode_plain(
        self, plain: PlainLines, arrays: SequenceArrays, is_exact_N: npt.NDArray[np.bool_]
    ) -> EncodedBatch:
        """All usual rows at once, and only the others among them by themselves."""
        num_tokens_N = arrays.num_tokens_N
        is_usual_N = is_exact_N & (num_tokens_N <= self._max_seq_length + 1) & (arrays.num_targets_N > 0)
        others = np.flatnonzero(~is_usual_N).tolist()
        conversations = {index: plain.conversation(index) for index in others}
        exact = {index: index for index in others if is_exact_N[index]}
        traced = {index: trace_alone(conversations[index], self._encoder) for index in others if index not in exact}
        work = _Work(conversations, FlatConversations(arrays, exact, traced))
        is_held_out_N = self._held_out(plain)
        # Runs of rows with one fate; each of the others is a run of its own.
        fates_N = np.where(is_usual_N, is_held_out_N, 2 + np.arange(len(plain)))
        starts = np.flatnonzero(np.diff(fates_N, prepend=-1)).tolist()
        for first, last in pairwise([*starts, len(plain)]):
            side = VALIDATION_SPLIT if is_held_out_N[first] else TRAIN_SPLIT
            if is_usual_N[first]:
                work.splits[side].add_rows(first, last)
                work.ledger.record_usual(self._outcome_of(side), last - first)
                continue
            reading = Reading((plain.row(first),), (conversations[first],))
            try:
                self._take(reading, side, range(first, last), work)
            except ConversationError as exc:
                work.refuse(reading, exc)
        return self._finished(work, num_bytes=len(plain.batch.lines))

    def _held_out(self, plain: PlainLines) -> npt.NDArray[np.bool_]:
        """Which rows are held out for validation."""
        if not self._fraction:
            return np.zeros(len(plain), dtype=np.bool_)
        fraction = self._fraction
        sides = [split_of_opening(opening, validation_fraction=fraction) for opening in plain.opening_hashes()]
        return np.array([side == VALIDATION_SPLIT for side in sides], dtype=np.bool_)

    def _finished(self, work: "_Work", *, num_bytes: int) -> EncodedBatch:
        splits = {name: self._weigh(collected, work.ledger) for name, collected in work.splits.items()}
        return EncodedBatch(splits, work.ledger, tuple(work.bad_rows), tuple(work.problems), num_bytes)

    def _outcome_of(self, side: str) -> Outcome:
        return VALIDATION if side == VALIDATION_SPLIT else self._outcome

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
        used = self._outcome_of(side)
        noticed = Ledger()
        fitted = [self._fit(place, work, noticed) for place in places]
        work.ledger.add(noticed)
        outcomes = [fit if isinstance(fit, str) else used for fit in fitted]
        collected = work.splits[side]
        for place, fit in zip(places, fitted, strict=True):
            if isinstance(fit, int):
                collected.add_rows(fit, fit + 1, place=place)
            elif isinstance(fit, tuple):
                collected.add_alone(fit, self._text_hash(work.conversations[place]), place)
        work.ledger.record_together(
            used if used in outcomes else outcomes[0],
            origins=[row.origin for row in reading.rows],
            num_conversations=outcomes.count(used),
            num_dropped=len(outcomes) - outcomes.count(used),
        )

    def _text_hash(self, conversation: Conversation) -> bytes:
        return text_hash(self._encoder.formatter.render(conversation).text.encode())

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

    def __init__(
        self, conversations: Sequence[Conversation] | Mapping[int, Conversation], flat: FlatConversations
    ) -> None:
        self.conversations = conversations
        self.flat = flat
        self.num_tokens_N = flat.arrays.num_tokens_N
        self.num_targets_N = flat.arrays.num_targets_N
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

    def add_rows(self, first: int, last: int, *, place: int | None = None) -> None:
        """Add rows of the flat arrays.

        Args:
            first: The first.
            last: One past the last.
            place: The number of the conversation of the first in the batch; None if it is that of the row.
        """
        start = first if place is None else place
        self.conversations += range(start, start + last - first)
        if self._alone or first != self._run.stop:
            self._end_part()
            self._run = range(first, first)
        self._run = range(self._run.start, last)

    def add_alone(self, sequences: Sequence[EncodedConversation], digest: bytes, place: int) -> None:
        """Add the sequences of a conversation that was encoded by itself."""
        self.conversations += [place] * len(sequences)
        if self._run:
            self._end_part()
        self._alone += sequences
        self._digests += [digest] * len(sequences)

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
