# SPDX-License-Identifier: Apache-2.0
"""From files to training sequences that know where their rows stand, and back from such places to sequences."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

from primus.chat.conversations import ConversationBatch, Reading, SourceOptions, read_batches
from primus.chat.reading import Row, RowBatch
from primus.errors import DataError
from primus.sft.batch_encoding import EncodedBatch, ShardEncoder
from primus.sft.sequences import SequenceArrays
from primus.sft.sources import TRAIN_SPLIT


class Place(NamedTuple):
    """Where the rows of a sequence stand.

    Attributes:
        file: Which file, in the order in which they were named.
        batch: Which batch of the file's rows.
        rows: Lines of the batch, or rows where these are decoded, from 0.
        number: Which of the sequences of these rows.
    """

    file: int
    batch: int
    rows: tuple[int, ...]
    number: int


class StreamedSequence(NamedTuple):
    """A training sequence and its place.

    Attributes:
        place: Where its rows stand.
        arrays: The sequences of its batch.
        at: Which of them it is.
    """

    place: Place
    arrays: SequenceArrays
    at: int

    @property
    def num_positions(self) -> int:
        """Positions that it takes."""
        bounds = self.arrays.token_bounds_N1
        return int(bounds[self.at + 1] - bounds[self.at]) - 1

    @property
    def content_hash(self) -> str:
        """Content hash of its conversation."""
        digest: bytes = self.arrays.content_hashes_N16[self.at].tobytes()
        return digest.hex()

    @property
    def origin(self) -> str:
        """Where its conversation stands, as `file:line`."""
        return self.arrays.origin(self.at)


@dataclass(frozen=True, slots=True)
class _ParsedBatch(ConversationBatch):
    """A batch that is parsed already."""

    parsed: tuple[Reading, ...] = ()

    def readings(self) -> Iterator[Reading]:
        yield from self.parsed


class SequenceReader:
    """Reads files batch by batch.

    Args:
        files: Data files, or data sets of the hub.
        source: How their rows are read.
        encoder: Turns rows into sequences.
        batch_bytes: About how many bytes of lines are read at once.
    """

    def __init__(
        self, files: Sequence[Path], *, source: SourceOptions, encoder: ShardEncoder, batch_bytes: int
    ) -> None:
        self._files = tuple(files)
        self._source = source
        self._encoder = encoder
        self._batch_bytes = batch_bytes

    def batches(self, file: int, *, skip: int = 0) -> Iterator[tuple[EncodedBatch, list[StreamedSequence]]]:
        """The batches of a file.

        Args:
            file: Which file.
            skip: How many batches to pass over, without decoding lines.

        Yields:
            What a batch of rows gave, and the sequences to train on.

        Raises:
            DataError: If the file can't be read.
        """
        for number, batch in enumerate(islice(self._rows(file), skip, None), start=skip):
            yield self._encode(batch, file=file, number=number)

    def find(self, places: Iterable[Place]) -> dict[Place, StreamedSequence]:
        """The sequences of places; only the rows that stand there are decoded and tokenized.

        Args:
            places: Where rows stand.

        Returns:
            The sequence of each place.

        Raises:
            DataError: If a file can't be read, or rows do not give what they gave before.
        """
        wanted: dict[int, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
        places = list(places)
        for place in places:
            wanted[place.file][place.batch].update(place.rows)
        found: dict[Place, StreamedSequence] = {}
        for file, rows in sorted(wanted.items()):
            for number, batch in enumerate(islice(self._rows(file), max(rows) + 1)):
                if number in rows:
                    kept = sorted(rows[number])
                    part = replace(batch, rows=_part(batch.rows, kept))
                    _, sequences = self._encode(part, file=file, number=number, kept=kept)
                    found.update((sequence.place, sequence) for sequence in sequences)
        missing = next((place for place in places if place not in found), None)
        if missing is not None:
            raise DataError(
                f"{self._files[missing.file]}: the rows of a conversation that was read are not there any more (batch"
                f" {missing.batch}, rows {', '.join(map(str, missing.rows))}); restore the file, or start anew"
            )
        return found

    def _rows(self, file: int) -> Iterator[ConversationBatch]:
        return read_batches([self._files[file]], self._source, batch_bytes=self._batch_bytes)

    def _encode(
        self, batch: ConversationBatch, *, file: int, number: int, kept: Sequence[int] | None = None
    ) -> tuple[EncodedBatch, list[StreamedSequence]]:
        readings = tuple(batch.readings())
        encoded = self._encoder.encode(_ParsedBatch(batch.rows, batch.options, readings))
        arrays = encoded.splits[TRAIN_SPLIT]
        numbers = _row_numbers(batch.rows, kept)
        rows_of = {
            conversation.origin: tuple(numbers(row) for row in reading.rows)
            for reading in readings
            for conversation in reading.conversations
        }
        counts: Counter[tuple[int, ...]] = Counter()
        sequences = []
        for index in range(len(arrays)):
            rows = rows_of[arrays.origin(index)]
            sequences.append(StreamedSequence(Place(file, number, rows, counts[rows]), arrays, index))
            counts[rows] += 1
        return encoded, sequences


def _part(rows: RowBatch, kept: Sequence[int]) -> RowBatch:
    """Some rows of a batch; lines keep their numbers, for the others are left blank."""
    if not rows.lines:
        return replace(rows, decoded=tuple(rows.decoded[number] for number in kept))
    wanted = set(kept)
    lines = rows.lines.split(b"\n")
    return replace(rows, lines=b"\n".join(line if i in wanted else b"" for i, line in enumerate(lines)))


def _row_numbers(rows: RowBatch, kept: Sequence[int] | None) -> Callable[[Row], int]:
    """What gives the number of a row in its batch, of which only some rows may be there."""
    if rows.lines:
        return lambda row: int(row.origin.rpartition(":")[2]) - rows.first_line
    numbers = {row.origin: number for row, number in zip(rows.decoded, count() if kept is None else kept, strict=False)}
    return lambda row: numbers[row.origin]
