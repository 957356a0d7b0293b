# SPDX-License-Identifier: Apache-2.0
"""The index of a file of tokens, in the form that Megatron reads.

The form is that of `_IndexWriter` in `megatron/core/datasets/indexed_dataset.py` of megatron-core 0.16.1, with every
number in little-endian order: the magic word, the version, the code of the tokens' type, the numbers of sequences and
of document bounds, then length, first byte and document of each sequence. Each sequence is a document of its own.

N: sequences.
"""

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

_MAGIC = b"MMIDIDX\x00\x00"
_VERSION = 1
_INT32_CODE = 4
_TOKEN_BYTES = 4


def index_of(token_bounds_N1: npt.NDArray[np.int64]) -> Iterator[Any]:
    """The parts of the index of sequences whose tokens are int32 and lie behind one another.

    Args:
        token_bounds_N1: Where the tokens of each sequence begin, and the number of all behind; shape [N + 1].

    Yields:
        Bytes and arrays, to be written one after another.

    Examples:
        >>> parts = list(index_of(np.array([0, 3, 5])))
        >>> [part.tolist() for part in parts[1:]]
        [[3, 2], [0, 12], [0, 1, 2]]
    """
    num_sequences = len(token_bounds_N1) - 1
    yield _MAGIC + struct.pack("<QBQQ", _VERSION, _INT32_CODE, num_sequences, num_sequences + 1)
    yield np.diff(token_bounds_N1).astype("<i4")
    yield (token_bounds_N1[:-1] * _TOKEN_BYTES).astype("<i8")
    yield np.arange(num_sequences + 1, dtype="<i8")
