# SPDX-License-Identifier: Apache-2.0
"""One row, and rows that stand together in a file."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from primus.chat.reading.strict_json import describe_json_error, load_json

MAX_ROW_BYTES = 1 << 28
"""The longest line, cell or element that is read. No conversation is as long; a file without line ends may be."""

_ROWS_PER_BATCH = 256
_CHARS_PER_BATCH = 1 << 20
_SHOWN_CHARS = 1000


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it was read.

    Attributes:
        origin: `file:line` (lines and tables, from 1), `file[index]` (lists, Parquet and Arrow, from 0), `file["key"]`
            (a mapping of rows), or the file alone (an object that is one row).
        value: The decoded row; None if it could not be decoded.
        error: Why it could not be decoded, as a complete message; None if it could.
        raw: The text of a row that could not be decoded; only its beginning if it is longer than a row may be.
    """

    origin: str
    value: Any = None
    error: str | None = None
    raw: str | None = None


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Rows that stand together in a file, not decoded yet where the file is one of lines.

    Attributes:
        path: The file, as it was named.
        first_line: Number of the first line in `lines`, from 1.
        lines: Whole lines as they stand in the file.
        decoded: The rows, of a file that is not read by lines.
        bytes_read: How many bytes of the file on disk had been read when the batch was made.
    """

    path: str
    first_line: int = 1
    lines: bytes = b""
    decoded: tuple[Row, ...] = ()
    bytes_read: int = 0

    def __iter__(self) -> Iterator[Row]:
        """The rows, decoded."""
        yield from self.decoded
        for number, line in enumerate(self.lines.split(b"\n") if self.lines else (), start=self.first_line):
            if line.strip():
                yield _decode(line, origin=f"{self.path}:{number}")

    @property
    def has_rows(self) -> bool:
        """Whether there is any row in it, as opposed to blank lines."""
        return bool(self.decoded or self.lines.strip())


def in_batches(rows: Iterable[Row], *, path: str, bytes_read: Callable[[], int]) -> Iterator[RowBatch]:
    """Put decoded rows into batches.

    Args:
        rows: The rows.
        path: The file, as it was named.
        bytes_read: Tells how many bytes of the file have been read.

    Yields:
        The batches, in order.
    """
    chunk: list[Row] = []
    num_chars = 0
    for row in rows:
        chunk.append(row)
        num_chars += _num_chars(row.value)
        if len(chunk) == _ROWS_PER_BATCH or num_chars >= _CHARS_PER_BATCH:
            yield RowBatch(path, decoded=tuple(chunk), bytes_read=bytes_read())
            chunk, num_chars = [], 0
    if chunk:
        yield RowBatch(path, decoded=tuple(chunk), bytes_read=bytes_read())


def _num_chars(value: Any) -> int:
    """About how many characters of text a decoded value has."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_num_chars, value.values()))
    return sum(map(_num_chars, value)) if isinstance(value, list | tuple) else 0


def too_long(origin: str, *, beginning: str, limit: int) -> Row:
    """A row that is longer than a row may be.

    Args:
        origin: Where it stands.
        beginning: How it begins.
        limit: The bytes it may have.

    Returns:
        The row, with its error.
    """
    error = (
        f"{origin}: the line is longer than {limit:,} bytes, the most that a row may have; split the file into lines,"
        " or drop the row"
    )
    return Row(origin, error=error, raw=beginning[:_SHOWN_CHARS])


def _decode(line: bytes, *, origin: str) -> Row:
    try:
        text = line.decode()
    except UnicodeDecodeError as exc:
        error = f"{origin}: not UTF-8 at byte {exc.start} (0x{line[exc.start]:02x}); save the file as UTF-8"
        return Row(origin, error=error, raw=line.decode(errors="backslashreplace").rstrip("\r\n"))
    try:
        return Row(origin, value=load_json(text))
    except ValueError as exc:
        error = f"{origin}: not valid JSON: {describe_json_error(exc)}; write one JSON object per line"
        return Row(origin, error=error, raw=text.rstrip("\r\n"))
