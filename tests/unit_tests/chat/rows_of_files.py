# SPDX-License-Identifier: Apache-2.0
"""Writes files and reads their rows, for the tests of reading."""

import gzip
import re
from pathlib import Path
from typing import Any

import pytest
import zstandard

from primus.chat import read_rows
from primus.errors import DataError


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def values(path: Path) -> list[Any]:
    """The rows of a file in which none has an error."""
    rows = list(read_rows(path))
    assert [row.error for row in rows] == [None] * len(rows)
    return [row.value for row in rows]


def refusal(path: Path) -> str:
    """Why a file is refused, without its path at the front."""
    with pytest.raises(DataError, match="^" + re.escape(str(path))) as refused:
        list(read_rows(path))
    message = str(refused.value).removeprefix(str(path))
    assert "\n" not in message
    return message


def gz(data: bytes) -> bytes:
    """Without the time in it: these bytes are in the names of tests."""
    return gzip.compress(data, mtime=0)


def zstd(data: bytes, *, frames: int = 1, checksum: bool = False) -> bytes:
    size = -(-len(data) // frames)
    compressor = zstandard.ZstdCompressor(write_checksum=checksum)
    return b"".join(compressor.compress(data[i : i + size]) for i in range(0, len(data), size))
