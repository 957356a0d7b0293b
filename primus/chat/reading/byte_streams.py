# SPDX-License-Identifier: Apache-2.0
"""The bytes of a file, decompressed; or those of standard input."""

import gzip
import io
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from primus.errors import DataError

COMPRESSIONS = (".gz", ".zst")
STDIN = "-"
"""The path of standard input."""

STDIN_NAME = "<stdin>"
"""What origins call it."""

# Decompressed at once. A block of 4 bytes can hold 128 KiB, so this bounds the memory that a file of repetitions takes.
_ZSTD_INPUT_BYTES = 1024


class ByteStream(NamedTuple):
    """What a file holds.

    Attributes:
        content: The decompressed bytes.
        position: Tells how many bytes of the file on disk have been read.
    """

    content: IO[bytes]
    position: Callable[[], int]


@contextmanager
def open_bytes(path: str) -> Iterator[ByteStream]:
    """Open a file, or standard input (`-`), and decompress what its name says is compressed.

    Args:
        path: The file.

    Yields:
        The stream.

    Raises:
        DataError: If the file may not be read, or compressed data is damaged; also while it is read.
    """
    if path == STDIN:
        yield ByteStream(sys.stdin.buffer, lambda: 0)
        return
    suffix = Path(path).suffix.lower()
    try:
        with Path(path).open("rb") as raw:
            if suffix == ".gz":
                with gzip.open(raw) as unzipped:
                    yield ByteStream(io.BufferedReader(unzipped), raw.tell)
            elif suffix == ".zst":
                import zstandard  # noqa: PLC0415

                try:
                    frames = _ZstdFrames(raw, zstandard.ZstdDecompressor())
                    yield ByteStream(io.BufferedReader(frames, buffer_size=1 << 16), raw.tell)
                except zstandard.ZstdError as exc:
                    raise DataError(f"{path}: the zst data is damaged ({exc}); make or copy the file again") from exc
            else:
                yield ByteStream(raw, raw.tell)
    except (EOFError, zlib.error, gzip.BadGzipFile) as exc:
        raise DataError(f"{path}: the {suffix[1:]} data is damaged ({exc}); make or copy the file again") from exc
    except PermissionError as exc:
        raise DataError(f"{path}: may not be read ({exc.strerror}); change its permissions") from exc


class _ZstdFrames(io.RawIOBase):
    """The content of zst frames, one after another; zstandard's own reader takes a truncated file for a whole one."""

    def __init__(self, compressed: IO[bytes], decompressor: Any) -> None:
        self._compressed = compressed
        self._decompressor = decompressor
        self._frame: Any = None
        self._input = b""
        self._content = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._content:
            self._input = self._input or self._compressed.read(_ZSTD_INPUT_BYTES)
            if not self._input:
                if self._frame is not None:
                    raise EOFError("compressed file ended before the end of its last frame")
                return 0
            frame = self._frame or self._decompressor.decompressobj()
            self._content = memoryview(frame.decompress(self._input))
            self._input = frame.unused_data
            self._frame = None if frame.eof else frame
        count = min(len(buffer), len(self._content))
        buffer[:count] = self._content[:count]
        self._content = self._content[count:]
        return count
