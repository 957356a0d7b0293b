# SPDX-License-Identifier: Apache-2.0
"""A shard of sequences as three files, and mapped back into memory.

All arrays but the tokens share one file, in the form of safetensors: a process may hold only so many open files and
mapped regions, and a data set has thousands of shards. The header of such a file follows from the counts alone, so a
file with another header is damaged.

N: sequences. T: tokens of all of them. K: their token spans. P: bytes of their origins.
"""

import json
import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from primus.errors import DataError
from primus.sft.prepared.disk import FileFacts, write_file
from primus.sft.prepared.indexed import index_of
from primus.sft.sequences import SequenceArrays

TOKENS = "tokens.bin"
INDEX = "tokens.idx"
ARRAYS = "arrays.safetensors"

# Those of the largest items first, so that each begins at a multiple of its items' size.
_KINDS: Mapping[str, tuple[str, str]] = {
    "token_bounds_N1": ("I64", "<i8"),
    "span_bounds_N1": ("I64", "<i8"),
    "origin_bounds_N1": ("I64", "<i8"),
    "token_spans_K2": ("I32", "<i4"),
    "turns_K": ("I32", "<i4"),
    "weights_K": ("F32", "<f4"),
    "num_targets_N": ("I32", "<i4"),
    "num_units_N": ("I32", "<i4"),
    "content_hashes_N16": ("U8", "u1"),
    "origins_P": ("U8", "u1"),
    "is_end_K": ("BOOL", "?"),
}


@dataclass(frozen=True, slots=True)
class ShardCounts:
    """How much a shard holds.

    Attributes:
        num_sequences: Its sequences.
        num_tokens: Their tokens.
        num_targets: Tokens that are trained.
        num_spans: Pieces of assistant turns.
        num_origin_bytes: Bytes of all origins.
    """

    num_sequences: int
    num_tokens: int
    num_targets: int
    num_spans: int
    num_origin_bytes: int

    @classmethod
    def of(cls, arrays: SequenceArrays) -> "ShardCounts":
        """The counts of arrays in memory."""
        return cls(
            num_sequences=len(arrays),
            num_tokens=len(arrays.tokens_T),
            num_targets=int(arrays.num_targets_N.sum(dtype=np.int64)),
            num_spans=len(arrays.turns_K),
            num_origin_bytes=len(arrays.origins_P),
        )

    def shape_of(self, name: str) -> tuple[int, ...]:
        """The shape that an array with a name has."""
        num_sequences, num_spans = self.num_sequences, self.num_spans
        shapes = {
            "N1": (num_sequences + 1,),
            "N": (num_sequences,),
            "N16": (num_sequences, 16),
            "K": (num_spans,),
            "K2": (num_spans, 2),
            "P": (self.num_origin_bytes,),
        }
        return shapes[name.rpartition("_")[2]]


def write_shard(folder: Path, arrays: SequenceArrays) -> dict[str, FileFacts]:
    """Write the files of a shard, and wait until they are on the disk.

    Args:
        folder: An empty folder.
        arrays: The sequences, as `SequenceArrays.concatenate` gives them.

    Returns:
        The facts of each file, by its name.
    """
    header, _ = _layout(ShardCounts.of(arrays))
    return {
        TOKENS: write_file(folder / TOKENS, [arrays.tokens_T]),
        INDEX: write_file(folder / INDEX, index_of(arrays.token_bounds_N1)),
        ARRAYS: write_file(folder / ARRAYS, [header, *(getattr(arrays, name) for name in _KINDS)]),
    }


def map_shard(folder: Path, counts: ShardCounts) -> SequenceArrays:
    """The sequences of a shard, read from the disk where they are looked at.

    Args:
        folder: The folder of the shard.
        counts: How much it holds.

    Returns:
        Arrays that can't be written to.

    Raises:
        DataError: If a file is shorter than the counts say, or has another header.
    """
    header, offsets = _layout(counts)
    path = folder / ARRAYS
    content = _mapped(path)
    if content[: len(header)] != header:
        raise DataError(f"{path}: is damaged (another header than its {counts.num_sequences} sequences have); {REDO}")
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, (_, dtype) in _KINDS.items():
        shape = counts.shape_of(name)
        arrays[name] = _array(path, content, dtype, math.prod(shape), offset=offsets[name]).reshape(shape)
    tokens_path = folder / TOKENS
    tokens_T = _array(tokens_path, _mapped(tokens_path), "<i4", counts.num_tokens, offset=0)
    return SequenceArrays(tokens_T=tokens_T, **arrays)


REDO = "prepare it again: remove the folder of the data set, and repeat the command that made it"


def _array(path: Path, content: bytes | mmap.mmap, dtype: str, count: int, *, offset: int) -> npt.NDArray[Any]:
    if len(content) < offset + count * np.dtype(dtype).itemsize:
        raise DataError(f"{path}: is cut off at {len(content):,} bytes; {REDO}")
    return np.frombuffer(content, dtype=dtype, count=count, offset=offset)


def _mapped(path: Path) -> bytes | mmap.mmap:
    with path.open("rb") as file:
        if not path.stat().st_size:
            return b""  # nothing can't be mapped
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _layout(counts: ShardCounts) -> tuple[bytes, dict[str, int]]:
    """The header of a safetensors file, and where in the file each array begins."""
    entries: dict[str, dict[str, Any]] = {}
    position = 0
    for name, (kind, dtype) in _KINDS.items():
        shape = counts.shape_of(name)
        end = position + math.prod(shape) * np.dtype(dtype).itemsize
        entries[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = struct.pack("<Q", len(text)) + text
    return header, {name: len(header) + entry["data_offsets"][0] for name, entry in entries.items()}
