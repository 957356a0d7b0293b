# SPDX-License-Identifier: Apache-2.0
"""What stands in the files that a data set is made from, by content and not by date."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from primus.chat.reading import STDIN, read_row_batches
from primus.errors import DataError
from primus.sft.workers import num_cores

_PIECE_BYTES = 16 << 20
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """A file that a data set is made from.

    Attributes:
        name: The file as it was named; the origins of sequences begin with it.
        num_bytes: Its size.
        digest: BLAKE3 hash of the hashes of its pieces of 16 MiB.
    """

    name: str
    num_bytes: int
    digest: str

    def to_dict(self) -> dict[str, Any]:
        """The facts as plain data."""
        return {"name": self.name, "bytes": self.num_bytes, "digest": self.digest}


@dataclass(frozen=True, slots=True)
class Stamp:
    """What the file system says of a file; another one means that the file may have been written.

    Attributes:
        num_bytes: Its size.
        modified_ns: When it was last written.
        inode: Its number.
        changed_ns: When anything about it last changed, which no program can set back; 0 if that does not count.
    """

    num_bytes: int
    modified_ns: int
    inode: int
    changed_ns: int


def stamps_of(files: Sequence[Path], *, is_strict: bool) -> list[Stamp]:
    """What the file system says of files.

    Args:
        files: The files.
        is_strict: Whether a change of anything counts, such as of permissions or the number of links.

    Returns:
        The stamp of each.

    Raises:
        DataError: If one is gone.
    """
    stamps: list[Stamp] = []
    for file in files:
        try:
            with file.open("rb") as opened:  # on a network disk, opening a file asks anew how it is
                found = os.fstat(opened.fileno())
        except OSError as exc:
            raise DataError(f"{file}: can't be read any more ({exc.strerror}); check the file and the disk") from exc
        changed_ns = found.st_ctime_ns if is_strict else 0
        stamps.append(Stamp(found.st_size, found.st_mtime_ns, found.st_ino, changed_ns))
    return stamps


def check_sources(files: Sequence[Path]) -> None:
    """Refuse what can't be read, or can't be read twice, before any work is done.

    Args:
        files: Data files.

    Raises:
        DataError: If a file does not exist, is empty, or of an unknown format; or is no file.
    """
    for file in files:
        if str(file) == STDIN or str(file).startswith("hf:/"):
            raise DataError(
                f"{file}: is no file, so it can't be told whether it is the same the next time; write it to one first:"
                f" primus data convert {file} conversations.jsonl"
            )
        for _ in read_row_batches(file, batch_bytes=1):
            break


def describe_sources(files: Sequence[Path]) -> list[SourceFacts]:
    """Size and content of files, read by all cores.

    Args:
        files: The files.

    Returns:
        The facts of each, in order.

    Raises:
        DataError: If a file can't be read.
    """
    try:
        sizes = [file.stat().st_size for file in files]
        pieces = [
            (file, start)
            for file, size in zip(files, sizes, strict=True)
            for start in range(0, max(size, 1), _PIECE_BYTES)
        ]
        with ThreadPoolExecutor(num_cores()) as threads:
            digests = threads.map(_digest_of_piece, *zip(*pieces, strict=True)) if pieces else iter(())
            joined = {file: blake3() for file in files}
            for (file, _), digest in zip(pieces, digests, strict=True):
                joined[file].update(digest)
    except OSError as exc:
        raise DataError(f"{exc.filename}: can't be read ({exc.strerror}); check the file and the disk") from exc
    return [SourceFacts(str(file), size, joined[file].hexdigest()) for file, size in zip(files, sizes, strict=True)]


def _digest_of_piece(file: Path, start: int) -> bytes:
    digest = blake3()
    with file.open("rb", buffering=0) as content:
        content.seek(start)
        rest = _PIECE_BYTES
        while rest and (block := content.read(min(rest, _READ_BYTES))):
            digest.update(block)
            rest -= len(block)
    return digest.digest()


def refuse_changed(
    before: Sequence[SourceFacts], stamps_before: Sequence[Stamp], after: Sequence[SourceFacts], files: Sequence[Path]
) -> None:
    """Refuse files that were written while they were read, also if they have their content again.

    Args:
        before: What they were before.
        stamps_before: What the file system said of them before.
        after: What they are now.
        files: The files.

    Raises:
        DataError: If any of them was written.
    """
    stamps = stamps_of(files, is_strict=False)
    changed = [
        f"{old.name}: was written while it was read ({old.num_bytes:,} bytes before, {new.num_bytes:,} now), so nothing"
        " is prepared; run it again when the file stays as it is"
        for old, new, stamp_before, stamp in zip(before, after, stamps_before, stamps, strict=True)
        if old != new or stamp_before != stamp
    ]
    if changed:
        raise DataError(*changed)
