# SPDX-License-Identifier: Apache-2.0
"""What the files of a checkpoint were when they were written: `files.json`, with the size and the SHA-256 of each.

A file that was cut off, lost or changed later is found before anything is loaded from it. PyTorch and Megatron notice
some of it while they load, and a flipped bit in a weight not at all.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from primus.errors import CheckpointError

DIGESTS_FILE = "files.json"
_LEFT_SUFFIX = ".sha256"
_BLOCK_BYTES = 1 << 20


class FileDigest(NamedTuple):
    """What a file holds."""

    size: int
    """Bytes."""
    sha256: str
    """Hash of them, in hexadecimal digits."""


def digest_of(path: Path) -> FileDigest:
    """Read a file to its end and tell what it holds."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            size += len(block)
    return FileDigest(size, digest.hexdigest())


def leave_digest(path: Path) -> None:
    """Write down beside a file what it holds, for `take_digests` of another process."""
    size, sha256 = digest_of(path)
    path.with_name(f"{path.name}{_LEFT_SUFFIX}").write_text(f"{size} {sha256}", encoding="utf-8")


def take_digests(folder: Path, *, prefix: str) -> Mapping[str, FileDigest]:
    """Collect what `leave_digest` left beside the files whose names begin so, and clear it away.

    Args:
        folder: Where the files are.
        prefix: Beginning of their names.

    Returns:
        By name of the file.
    """
    found = {}
    for path in sorted(folder.glob(f"{prefix}*{_LEFT_SUFFIX}")):
        size, sha256 = path.read_text(encoding="utf-8").split()
        found[path.name.removesuffix(_LEFT_SUFFIX)] = FileDigest(int(size), sha256)
        path.unlink()
    return found


def write_digests(folder: Path, *, known: Mapping[str, FileDigest]) -> None:
    """Write `files.json`, when all other files of the folder are complete and will not change.

    Args:
        folder: A checkpoint.
        known: What is known of some files already; the others are read, and written through to the disk.
    """
    digests = dict(known)
    for path in sorted(folder.iterdir()):
        if path.name not in digests and path.name != DIGESTS_FILE:
            with path.open("rb") as file:
                os.fsync(file.fileno())
            digests[path.name] = digest_of(path)
    document = {name: {"size": size, "sha256": sha256} for name, (size, sha256) in sorted(digests.items())}
    with (folder / DIGESTS_FILE).open("w", encoding="utf-8") as file:
        file.write(json.dumps({"files": document}, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_digests(folder: Path) -> Mapping[str, FileDigest]:
    """Read `files.json`.

    Args:
        folder: A checkpoint.

    Returns:
        By name of the file.

    Raises:
        CheckpointError: If it is missing or damaged.
    """
    path = folder / DIGESTS_FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        digests = {
            name: FileDigest(int(entry["size"]), str(entry["sha256"])) for name, entry in document["files"].items()
        }
    except FileNotFoundError as exc:
        raise CheckpointError(f"{path}: is missing; name another checkpoint") from exc
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as exc:
        reason = " ".join(str(exc).split())
        raise CheckpointError(f"{path}: cannot be read ({reason}); name another checkpoint") from exc
    return digests


def damages(folder: Path, names: Iterable[str], *, digests: Mapping[str, FileDigest]) -> Sequence[str]:
    """Compare files with what they were when they were written.

    Args:
        folder: A checkpoint.
        names: The files to look at.
        digests: What they were.

    Returns:
        What is wrong, an entry for each file that is not as it was.
    """
    return [damage for name in names if (damage := _damage(folder / name, digests[name]))]


def _damage(path: Path, expected: FileDigest) -> str | None:
    try:
        size = path.stat().st_size
        if size != expected.size:
            return f"{path.name} has {size:,} bytes, {expected.size:,} were written"
        if digest_of(path) != expected:
            return f"{path.name} does not hold what was written"
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as exc:
        return f"{path.name} cannot be read ({exc.strerror})"
    return None
