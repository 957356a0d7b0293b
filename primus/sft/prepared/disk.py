# SPDX-License-Identifier: Apache-2.0
"""Writing files so that they are whole or absent, and telling what a disk refuses."""

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from primus.errors import DataError

_PIECE_BYTES = 1 << 20

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What a file must be.

    Attributes:
        num_bytes: Its size.
        digest: Its BLAKE3 hash, as `b3sum` prints it.
    """

    num_bytes: int
    digest: str

    def to_dict(self) -> dict[str, Any]:
        """The facts as plain data."""
        return {"bytes": self.num_bytes, "digest": self.digest}

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> "FileFacts":
        """The facts that plain data tell."""
        return cls(num_bytes=int(document["bytes"]), digest=str(document["digest"]))


def write_file(path: Path, buffers: Iterable[Any]) -> FileFacts:
    """Write a file and wait until it is on the disk; it is not renamed.

    Args:
        path: The file.
        buffers: Its content, as bytes or contiguous arrays.

    Returns:
        What was written.
    """
    digest = blake3()
    num_bytes = 0
    with path.open("wb") as file:
        for buffer in buffers:
            view = np.frombuffer(buffer, dtype=np.uint8) if isinstance(buffer, bytes) else _bytes_of(buffer)
            if view.nbytes:
                digest.update(view)
                file.write(view)
                num_bytes += view.nbytes
        file.flush()
        os.fsync(file.fileno())
    return FileFacts(num_bytes, digest.hexdigest())


def _bytes_of(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return array.reshape(-1).view(np.uint8)


def replace_file(path: Path, buffers: Iterable[Any], *, writer: str = "") -> FileFacts:
    """Write a file beside its name, and give it the name when all of it is on the disk.

    Args:
        path: The file.
        buffers: Its content.
        writer: Who writes, where several may write the same.

    Returns:
        What was written.
    """
    part = path.with_name(f"{path.name}{writer}.part")
    facts = write_file(part, buffers)
    part.replace(path)
    sync_folder(path.parent)
    return facts


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_pieces(path: Path) -> Iterator[bytes]:
    """The bytes of a file, a megabyte at a time."""
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            yield piece


def facts_of(path: Path) -> FileFacts:
    """What a file is, from reading all of it."""
    digest = blake3()
    num_bytes = 0
    for piece in read_pieces(path):
        digest.update(piece)
        num_bytes += len(piece)
    return FileFacts(num_bytes, digest.hexdigest())


@contextmanager
def disk_errors(folder: Path, *, rest: str = "") -> Iterator[None]:
    """Tell what the disk refuses in one line.

    Args:
        folder: What is being written, if the error names no file.
        rest: What becomes of the work that is done.

    Yields:
        Nothing.

    Raises:
        DataError: Instead of an `OSError`.
    """
    try:
        yield
    except OSError as exc:
        path = exc.filename or folder
        if exc.errno in _NO_SPACE:
            advice = f"make room there and run it again{rest}"
        elif exc.errno in _NOT_ALLOWED or isinstance(exc, NotADirectoryError | FileExistsError):
            advice = "name a folder that can be written with --out, or with workspace or sft_cache_dir"
        else:
            advice = f"check the disk and run it again{rest}"
        raise DataError(f"{path}: can't be written ({exc.strerror or exc}); {advice}") from exc
