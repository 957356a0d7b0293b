# SPDX-License-Identifier: Apache-2.0
"""From data files to conversations, row by row or in batches that other processes can parse.

    file -> RowBatch -> Reading: the rows that belong together, and the conversations they gave or the error

Every row is in exactly one reading, so the counts of readings sum to the rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from primus.chat.formats import SourceOptions, parse_row
from primus.chat.messages import Conversation
from primus.chat.reading import Row, RowBatch, read_row_batches
from primus.errors import ConversationError

__all__ = ["ConversationBatch", "Reading", "SourceOptions", "read_batches", "read_conversations"]

BATCH_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Reading:
    """Rows that belong together, and what they gave.

    Attributes:
        rows: The rows: one, or those of one conversation where every row is a turn.
        conversations: What they gave: one conversation, or the branches of a tree; none if there is an error.
        error: Why they gave none.
    """

    rows: tuple[Row, ...]
    conversations: tuple[Conversation, ...] = ()
    error: ConversationError | None = None

    @property
    def origin(self) -> str:
        """Where the first row stands."""
        return self.rows[0].origin


@dataclass(frozen=True, slots=True)
class ConversationBatch:
    """Rows that stand together, and how to read them; small, and the same in every process.

    Attributes:
        rows: The rows.
        options: How they are read.
    """

    rows: RowBatch
    options: SourceOptions

    def readings(self) -> Iterator[Reading]:
        """Parse the rows, in order."""
        for row in self.rows:
            yield _read(row, self.options)


def read_batches(
    files: Sequence[str | Path], options: SourceOptions, *, batch_bytes: int = BATCH_BYTES
) -> Iterator[ConversationBatch]:
    """Yield batches of rows, in order, in constant memory for files of lines.

    Args:
        files: Data files.
        options: How rows are read.
        batch_bytes: About how many bytes of a file one batch holds.

    Yields:
        The batches; rows of one conversation are never in two of them.

    Raises:
        DataError: If a file can't be read.
    """
    for file in files:
        for rows in read_row_batches(file, batch_bytes=batch_bytes):
            yield ConversationBatch(rows, options)


def read_conversations(files: Sequence[str | Path], options: SourceOptions) -> Iterator[Reading]:
    """Yield every row of data files with the conversations it gave or the error.

    Args:
        files: Data files.
        options: How rows are read.

    Yields:
        The readings, in the order of the files.

    Raises:
        DataError: If a file can't be read.
    """
    for batch in read_batches(files, options):
        yield from batch.readings()


def _read(row: Row, options: SourceOptions) -> Reading:
    if row.error is not None:
        return Reading((row,), error=ConversationError(row.error, reason="not_json"))
    try:
        return Reading((row,), parse_row(row.value, row.origin, options))
    except ConversationError as exc:
        return Reading((row,), error=exc)
