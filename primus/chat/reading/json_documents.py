# SPDX-License-Identifier: Apache-2.0
"""JSON files: a list of rows, a mapping of rows, one row, or rows line by line under the wrong name.

A list is read a row at a time, in constant memory. An object is read whole. It is a mapping of rows if it is not empty
and all its values are objects, for a row has a text or a list somewhere at its top; otherwise it is one row.
"""

import codecs
import json
import re
from collections.abc import Iterator, Mapping
from typing import IO, Any

from primus.chat.reading.byte_streams import open_bytes
from primus.chat.reading.lines import read_lines
from primus.chat.reading.rows import MAX_ROW_BYTES, Row, RowBatch, in_batches
from primus.chat.reading.strict_json import load_json, load_json_at
from primus.errors import DataError

READ_BYTES = 1 << 18
"""How much of a list is read at once."""
# A longer first line is not looked at: it is mostly a list on one line, which would be read for nothing.
_LONGEST_FIRST_LINE = 1 << 24
_OPENING, _CLOSING = (b"{", b"["), (b"}", b"]")
_SPACE = re.compile(r"[ \t\n\r]*")
# An error this far from the end of what has been read is one of the text, and not because the rest is not there yet.
_LONGEST_TOKEN = 16


def read_json(
    path: str, *, batch_bytes: int, max_row_bytes: int = MAX_ROW_BYTES, read_bytes: int = READ_BYTES
) -> Iterator[RowBatch]:
    """Yield the rows of a JSON file in batches.

    Args:
        path: The file.
        batch_bytes: About how many bytes of lines one batch holds, if the file turns out to be one of lines.
        max_row_bytes: The longest row.
        read_bytes: How much of a list is read at once.

    Yields:
        The batches, in order.

    Raises:
        DataError: If the file is not JSON, or neither a list nor an object.
    """
    with open_bytes(path) as (content, position):
        is_lines = _is_lines(content)
    if is_lines:
        yield from read_lines(path, batch_bytes=batch_bytes)
        return
    with open_bytes(path) as (content, position):
        window = _Window(path, content, read_bytes=read_bytes)
        is_list = window.next_character() == "["
        rows = _elements(window, max_row_bytes=max_row_bytes) if is_list else _rows_of_object(window)
        yield from in_batches(rows, path=path, bytes_read=position)


def _is_lines(content: IO[bytes]) -> bool:
    """Whether the first line is a whole object or list, and another one begins on the next."""
    lines = (line for line in iter(lambda: content.readline(_LONGEST_FIRST_LINE), b"") if line.strip())
    first = next(lines, b"").removeprefix(codecs.BOM_UTF8).strip()
    if first[:1] not in _OPENING or first[-1:] not in _CLOSING or next(lines, b"").lstrip()[:1] not in _OPENING:
        return False
    try:
        load_json(first.decode())
    except ValueError:
        return False
    return True


class _Window:
    """A part of a text that is being read, and where in the text it begins."""

    def __init__(self, path: str, content: IO[bytes], *, read_bytes: int) -> None:
        self.path = path
        self.text = ""
        self.position = 0
        self.is_at_end = False
        self._content = content
        self._read_bytes = read_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._bytes_decoded = 0
        self._lines_dropped = 0
        self._columns_dropped = 0

    def read_more(self) -> bool:
        """Drop what lies before the position, and read about as much again as is left; false at the end."""
        if self.is_at_end:
            return False
        dropped = self.text[: self.position]
        if dropped:
            self._lines_dropped += dropped.count("\n")
            last_line = dropped.rpartition("\n")[2]
            self._columns_dropped = len(last_line) + (self._columns_dropped if last_line == dropped else 0)
        rest = self.text[self.position :]
        data = self._content.read(max(self._read_bytes, len(rest)))
        self.is_at_end = not data
        pending = len(self._decoder.getstate()[0])
        try:
            more = self._decoder.decode(data, final=self.is_at_end)
        except UnicodeDecodeError as exc:
            at = self._bytes_decoded - pending + exc.start
            raise DataError(f"{self.path}: not UTF-8 at byte {at}; save the file as UTF-8") from exc
        if self._bytes_decoded == 0:
            more = more.removeprefix("\ufeff")
        self._bytes_decoded += len(data)
        self.text, self.position = rest + more, 0
        return not self.is_at_end

    def read_all(self) -> None:
        """Read to the end."""
        while self.read_more():
            pass

    def next_character(self) -> str:
        """Skip white space; the character behind it, empty at the end."""
        while True:
            match = _SPACE.match(self.text, self.position)
            assert match is not None
            self.position = match.end()
            if self.position < len(self.text):
                return self.text[self.position]
            if not self.read_more():
                return ""

    def problem(self, error: ValueError) -> DataError:
        """What is wrong, with the line if it is known."""
        if not isinstance(error, json.JSONDecodeError):
            return DataError(f"{self.path}: not valid JSON: {error}; repair the file")
        hint = "write a list of rows, or one row per line" if error.msg == "Extra data" else "repair the file"
        column = error.colno + (self._columns_dropped if error.lineno == 1 else 0)
        line = error.lineno + self._lines_dropped
        return DataError(f"{self.path}:{line}: not valid JSON: {error.msg} at column {column}; {hint}")

    def problem_here(self, message: str) -> DataError:
        """What is wrong at the position."""
        return self.problem(json.JSONDecodeError(message, self.text, self.position))


def _elements(window: _Window, *, max_row_bytes: int) -> Iterator[Row]:
    window.position += 1
    index = 0
    character = window.next_character()
    while character != "]" or index > 0:
        origin = f"{window.path}[{index}]"
        yield Row(origin, value=_element(window, origin=origin, max_row_bytes=max_row_bytes))
        index += 1
        character = window.next_character()
        if character == "]":
            break
        if character != ",":
            raise window.problem_here("Expecting ',' delimiter")
        window.position += 1
        window.next_character()
    window.position += 1
    if window.next_character():
        raise window.problem_here("Extra data")


def _element(window: _Window, *, origin: str, max_row_bytes: int) -> Any:
    """The value at the position; more is read until all of it is there."""
    while True:
        try:
            value, end = load_json_at(window.text, window.position)
        except json.JSONDecodeError as exc:
            is_cut = exc.msg.startswith("Unterminated string") or len(window.text) - exc.pos < _LONGEST_TOKEN
            if window.is_at_end or not is_cut:
                raise window.problem(exc) from exc
        except ValueError as exc:
            raise window.problem(exc) from exc
        else:
            # A number may go on: behind "1" there may be ".", and behind that a digit.
            if window.text[end - 1] in '}]"' or len(window.text) - end > len("e+") or window.is_at_end:
                window.position = end
                return value
        if len(window.text) - window.position > max_row_bytes:
            raise DataError(
                f"{origin}: the row is longer than {max_row_bytes:,} characters, the most that a row may have; drop it"
            )
        window.read_more()


def _rows_of_object(window: _Window) -> Iterator[Row]:
    window.read_all()
    try:
        value = load_json(window.text)
    except ValueError as exc:
        raise window.problem(exc) from exc
    path = window.path
    if not isinstance(value, Mapping):
        raise DataError(f"{path}: holds a JSON {_type_name(value)}, not rows; write [row, row, ...] or JSONL")
    if not value or not all(isinstance(row, Mapping) for row in value.values()):
        yield Row(path, value=value)
        return
    for key, row in value.items():
        has_id = row.get("id") is not None
        yield Row(f"{path}[{json.dumps(key, ensure_ascii=False)}]", value=row if has_id else {"id": key, **row})


def _type_name(value: Any) -> str:
    names = {str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")
