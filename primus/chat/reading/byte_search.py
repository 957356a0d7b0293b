# SPDX-License-Identifier: Apache-2.0
"""Looking for bytes in megabytes of lines, several times sooner than `bytes.count` and `in` do.

Those stop at every byte that may be a find. Here all are compared at once, whatever stands there.
"""

import numpy as np

_WORD = 4


def count_byte(data: bytes, byte: bytes) -> int:
    r"""How often a byte stands in data.

    Args:
        data: The data.
        byte: The byte.

    Returns:
        What `data.count(byte)` gives.

    Examples:
        >>> count_byte(b"two\nlines\n", b"\n")
        2
    """
    return int(np.count_nonzero(np.frombuffer(data, dtype=np.uint8) == byte[0])) if data else 0


def has_any(data: bytes, *words: bytes) -> bool:
    """Whether any of several words of four bytes stands in data.

    Args:
        data: The data.
        *words: The words.

    Returns:
        What `any(word in data for word in words)` gives.

    Raises:
        ValueError: If a word has not four bytes.

    Examples:
        >>> has_any(b'{"chat_id": 3}', b'_id"', b"none")
        True
        >>> has_any(b'_i"', b'_id"')
        False
    """
    if any(len(word) != _WORD for word in words):
        raise ValueError(f"words {words} have not all {_WORD} bytes")
    numbers = [int.from_bytes(word, "little") for word in words]
    for first in range(min(_WORD, max(len(data) - _WORD + 1, 0))):
        # The words that begin at every fourth byte.
        found = np.frombuffer(data, dtype="<u4", count=(len(data) - first) // _WORD, offset=first)
        if any((found == number).any() for number in numbers):
            return True
    return False
