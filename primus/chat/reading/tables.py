# SPDX-License-Identifier: Apache-2.0
"""Tables as text (RFC 4180): the first record names the columns, every other one is a row.

A cell is a string as it stands, and null if it is empty. In columns that hold lists (`JSON_COLUMNS`) a cell that is
JSON is decoded.
"""

import csv
import io
import re
from collections.abc import Iterator
from typing import Any, TextIO

from primus.chat.reading.byte_streams import open_bytes
from primus.chat.reading.rows import MAX_ROW_BYTES, Row, RowBatch, in_batches
from primus.chat.reading.strict_json import load_json
from primus.errors import DataError

JSON_COLUMNS = frozenset(
    {
        "messages",
        "conversations",
        "conversation",
        "history",
        "tools",
        "functions",
        "tool_calls",
        "function_call",
        "traj",
    }
)
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
_OTHER_DELIMITERS = {",": (";", "\t", "|"), "\t": (",", ";", "|")}
_SHOWN_CHARS = 1000


def read_table(path: str, *, batch_bytes: int, delimiter: str) -> Iterator[RowBatch]:
    """Yield the rows of a table in batches.

    Args:
        path: The file.
        batch_bytes: Not used: rows of tables are batched by their number.
        delimiter: What separates the cells.

    Yields:
        The batches, in order.

    Raises:
        DataError: If the header has a name twice, or a line is longer than a row may be.
    """
    del batch_bytes
    with open_bytes(path) as (content, position):
        # A byte that is not UTF-8 makes its row an error, and not the file.
        text = io.TextIOWrapper(content, encoding="utf-8-sig", errors="surrogateescape", newline="")
        yield from in_batches(_rows(path, text, delimiter=delimiter), path=path, bytes_read=position)


class _Lines:
    """Gives a `csv.reader` the lines of a file, and keeps those of the record that it is reading."""

    def __init__(self, path: str, text: TextIO) -> None:
        self.number = 0
        self.record: list[str] = []
        self._path = path
        self._text = text

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._text.readline(MAX_ROW_BYTES)
        if not line:
            raise StopIteration
        self.number += 1
        if len(line) == MAX_ROW_BYTES and line[-1] not in "\r\n":
            raise DataError(
                f"{self._path}:{self.number}: the line is longer than {MAX_ROW_BYTES:,} characters, the most that a"
                " row may have; drop it"
            )
        self.record.append(line)
        return line


def _rows(path: str, text: TextIO, *, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(MAX_ROW_BYTES)
    lines = _Lines(path, text)
    records = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        lines.record.clear()
        origin = f"{path}:{lines.number + 1}"
        cells: list[str] = []
        error: str | None
        try:
            cells = next(records)
        except StopIteration:
            return
        except csv.Error as exc:
            # A byte may also make the record one that csv can't read, as the zeros of UTF-16 do.
            error = _problem(origin, lines.record, None) or _problem_of_quotes(origin, exc)
        else:
            if not cells:  # a blank line
                continue
            error = _problem(origin, cells, header)
        if header is None:
            if error is not None:
                raise DataError(error)
            header = cells
            _check_header(origin, header, delimiter)
        elif error is not None:
            yield Row(origin, error=error, raw=_printable("".join(lines.record)))
        else:
            yield Row(origin, value={name: _value(name, cell) for name, cell in zip(header, cells, strict=True)})


def _problem(origin: str, cells: list[str], header: list[str] | None) -> str | None:
    escaped = next((match for cell in cells if (match := _ESCAPED_BYTE.search(cell))), None)
    if escaped:
        return f"{origin}: not UTF-8 (0x{ord(escaped[0]) - 0xDC00:02x}); save the file as UTF-8"
    if header is not None and len(cells) != len(header):
        return (
            f"{origin}: the row has {len(cells)} cells, but the header names {len(header)} columns; put quotes around"
            " cells with separators or line ends in them"
        )
    return None


def _problem_of_quotes(origin: str, error: csv.Error) -> str:
    if "unexpected end of data" in str(error):
        return f"{origin}: a quoted cell of this row is never closed; end it with a quote"
    return f"{origin}: not a valid record ({error}); double the quotes inside a quoted cell"


def _check_header(origin: str, header: list[str], delimiter: str) -> None:
    repeated = next((name for i, name in enumerate(header) if name in header[:i]), None)
    if repeated is not None:
        raise DataError(f"{origin}: the header names the column {repeated!r} twice; rename one")
    if len(header) == 1:
        other = next((mark for mark in _OTHER_DELIMITERS[delimiter] if mark in header[0]), None)
        if other is not None:
            raise DataError(
                f"{origin}: the header is one column, {header[0]!r:.60}, with {other!r} in it; separate the columns"
                f" with {delimiter!r}"
            )


def _value(name: str, cell: str) -> Any:
    if not cell:
        return None
    if name in JSON_COLUMNS and cell.lstrip()[:1] in ("[", "{"):
        try:
            return load_json(cell)
        except ValueError:
            return cell
    return cell


def _printable(text: str) -> str:
    data = text.encode(errors="surrogateescape")
    return data.decode(errors="backslashreplace").rstrip("\r\n")
