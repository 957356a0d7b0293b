# SPDX-License-Identifier: Apache-2.0
"""Files of lines, each a row of JSON: read in constant memory, decoded by whoever takes the batch."""

from collections.abc import Iterator
from typing import IO

from primus.chat.reading.byte_search import count_byte
from primus.chat.reading.byte_streams import STDIN, STDIN_NAME, open_bytes
from primus.chat.reading.rows import MAX_ROW_BYTES, RowBatch, too_long

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SKIPPED_BYTES = 1 << 20


def read_lines(path: str, *, batch_bytes: int, max_row_bytes: int = MAX_ROW_BYTES) -> Iterator[RowBatch]:
    """Yield the lines of a file in batches.

    Args:
        path: The file, or `-` for standard input.
        batch_bytes: About how many bytes of lines one batch holds.
        max_row_bytes: The longest line. What is longer by more than a batch is a row with an error.

    Yields:
        The batches, in order.
    """
    name = STDIN_NAME if path == STDIN else path
    number = 1
    with open_bytes(path) as (content, position):
        block = content.read(batch_bytes + len(_BYTE_ORDER_MARK)).removeprefix(_BYTE_ORDER_MARK)
        while block:
            if not block.endswith(b"\n"):
                block += content.readline(max_row_bytes)
            start_of_last = block.rfind(b"\n", 0, -1) + 1
            is_too_long = not block.endswith(b"\n") and len(block) - start_of_last > max_row_bytes
            whole = block[:start_of_last] if is_too_long else block
            if whole:
                yield RowBatch(name, first_line=number, lines=whole, bytes_read=position())
                number += count_byte(whole, b"\n")
            if is_too_long:
                _skip_line(content)
                beginning = block[start_of_last:][:_SKIPPED_BYTES].decode(errors="backslashreplace")
                row = too_long(f"{name}:{number}", beginning=beginning, limit=max_row_bytes)
                yield RowBatch(name, decoded=(row,), bytes_read=position())
                number += 1
            block = content.read(batch_bytes)


def _skip_line(content: IO[bytes]) -> None:
    """Read to the end of the line, a piece at a time."""
    while (piece := content.readline(_SKIPPED_BYTES)) and not piece.endswith(b"\n"):
        pass
