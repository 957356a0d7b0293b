# SPDX-License-Identifier: Apache-2.0
"""Large files told from each other by pieces of them."""

import hashlib
from pathlib import Path

_NUM_PIECES, _PIECE_BYTES = 17, 1 << 16


def sample_of(path: Path) -> str:
    """A hash of a file's size and of about a megabyte of it, in pieces from its beginning to its end.

    Equal files have equal samples. Different ones have different samples where they differ nearly everywhere, as
    weights of another training do; a change in one place of a large file is mostly not seen.

    Args:
        path: The file.

    Returns:
        Hexadecimal digits.

    Raises:
        OSError: If it cannot be read.
    """
    size = path.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with path.open("rb") as file:
        for piece in range(_NUM_PIECES):
            file.seek(max(0, size - _PIECE_BYTES) * piece // (_NUM_PIECES - 1))
            digest.update(file.read(_PIECE_BYTES))
    return digest.hexdigest()
