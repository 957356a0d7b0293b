# SPDX-License-Identifier: Apache-2.0
"""Training sequences as flat arrays that lie behind one another, in memory or mapped from files.

N: sequences. T: tokens of all of them. K: token spans of all of them. P: bytes of all origins.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from blake3 import blake3
from typing_extensions import Self

from primus.sft.encoding import EncodedConversation

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SequenceArrays:
    """Tokens of sequences, and what of them is trained.

    A sequence is a conversation, or a part of one where truncation has made several. Sequence `n` has the tokens
    `tokens_T[token_bounds_N1[n]:token_bounds_N1[n + 1]]`; its spans and its origin lie in theirs in the same way.

    Attributes:
        tokens_T: Token ids.
        token_bounds_N1: Where the tokens of each sequence begin, and the number of all behind; shape [N + 1].
        token_spans_K2: Tokens `[first, last)` of each piece of an assistant turn, counted from the sequence's first.
        turns_K: Index of the message that a piece belongs to.
        is_end_K: Whether a piece is the end of its turn, and not its content.
        weights_K: Factor of the loss of each token of a piece; 0 where it is context only.
        span_bounds_N1: Where the spans of each sequence begin; shape [N + 1].
        num_targets_N: Tokens of each sequence that are trained; its first token never is, since nothing predicts it.
        num_units_N: What each sequence adds to the divisor of the loss: its targets, its trained turns, or 1 for a
            conversation, as the normaliser says.
        content_hashes_N16: What `text_hash` gives for the whole conversation of each sequence.
        origins_P: Where the conversations came from, UTF-8, one behind another.
        origin_bounds_N1: Where the origin of each sequence begins; shape [N + 1].
    """

    tokens_T: Int32Array
    token_bounds_N1: Int64Array
    token_spans_K2: Int32Array
    turns_K: Int32Array
    is_end_K: npt.NDArray[np.bool_]
    weights_K: npt.NDArray[np.float32]
    span_bounds_N1: Int64Array
    num_targets_N: Int32Array
    num_units_N: Int32Array
    content_hashes_N16: npt.NDArray[np.uint8]
    origins_P: npt.NDArray[np.uint8]
    origin_bounds_N1: Int64Array

    def __len__(self) -> int:
        return len(self.num_targets_N)

    def __getitem__(self, index: int) -> EncodedConversation:
        """The sequence with an index."""
        if not 0 <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        tokens = slice(self.token_bounds_N1[index], self.token_bounds_N1[index + 1])
        spans = slice(self.span_bounds_N1[index], self.span_bounds_N1[index + 1])
        return EncodedConversation(
            tokens_T=self.tokens_T[tokens].astype(np.int64),
            token_spans_K2=self.token_spans_K2[spans].astype(np.int64),
            turns_K=self.turns_K[spans].astype(np.int64),
            is_end_K=np.asarray(self.is_end_K[spans]),
            weights_K=np.asarray(self.weights_K[spans]),
            origin=self.origin(index),
        )

    @property
    def num_tokens_N(self) -> Int64Array:
        """Tokens of each sequence."""
        return np.diff(self.token_bounds_N1)

    def origin(self, index: int) -> str:
        """Where the conversation of a sequence came from, as `file:line`."""
        return self.origins_P[self.origin_bounds_N1[index] : self.origin_bounds_N1[index + 1]].tobytes().decode()

    def where(self, is_kept_N: npt.NDArray[np.bool_]) -> Self:
        """The sequences that are kept, in order."""
        edges = np.flatnonzero(np.diff(np.concatenate([[False], is_kept_N, [False]])))
        return self.concatenate([self.between(a, b) for a, b in edges.reshape(-1, 2).tolist()])

    @classmethod
    def of_conversations(cls, conversations: Sequence[EncodedConversation], *, content_hashes: Sequence[bytes]) -> Self:
        """Sequences that are encoded one by one, with a unit for each target.

        Args:
            conversations: The sequences.
            content_hashes: What `text_hash` gives for each whole conversation.

        Returns:
            Their arrays.
        """
        num_targets_N = np.array([c.num_targets for c in conversations], dtype=np.int32)
        origins = [c.origin.encode() for c in conversations]
        return cls(
            tokens_T=_joined([c.tokens_T for c in conversations], "tokens_T"),
            token_bounds_N1=bounds_of([len(c.tokens_T) for c in conversations]),
            token_spans_K2=_joined([c.token_spans_K2 for c in conversations], "token_spans_K2"),
            turns_K=_joined([c.turns_K for c in conversations], "turns_K"),
            is_end_K=_joined([c.is_end_K for c in conversations], "is_end_K"),
            weights_K=_joined([c.weights_K for c in conversations], "weights_K"),
            span_bounds_N1=bounds_of([len(c.turns_K) for c in conversations]),
            num_targets_N=num_targets_N,
            num_units_N=num_targets_N,
            content_hashes_N16=np.frombuffer(b"".join(content_hashes), dtype=np.uint8).reshape(-1, 16),
            origins_P=np.frombuffer(b"".join(origins), dtype=np.uint8),
            origin_bounds_N1=bounds_of([len(origin) for origin in origins]),
        )

    def between(self, first: int, last: int) -> Self:
        """The sequences `[first, last)`, with views of these arrays where possible."""
        tokens, spans, origins = (
            slice(bounds[first], bounds[last])
            for bounds in (self.token_bounds_N1, self.span_bounds_N1, self.origin_bounds_N1)
        )
        return type(self)(
            tokens_T=self.tokens_T[tokens],
            token_bounds_N1=self.token_bounds_N1[first : last + 1] - self.token_bounds_N1[first],
            token_spans_K2=self.token_spans_K2[spans],
            turns_K=self.turns_K[spans],
            is_end_K=self.is_end_K[spans],
            weights_K=self.weights_K[spans],
            span_bounds_N1=self.span_bounds_N1[first : last + 1] - self.span_bounds_N1[first],
            num_targets_N=self.num_targets_N[first:last],
            num_units_N=self.num_units_N[first:last],
            content_hashes_N16=self.content_hashes_N16[first:last],
            origins_P=self.origins_P[origins],
            origin_bounds_N1=self.origin_bounds_N1[first : last + 1] - self.origin_bounds_N1[first],
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """The sequences of several arrays, in order.

        Args:
            parts: The arrays; without any there are no sequences.

        Returns:
            Arrays of their own memory, in little-endian order and without gaps, so that equal sequences have equal
            bytes.
        """
        joined: dict[str, Any] = {}
        for field in fields(cls):
            arrays = [getattr(part, field.name) for part in parts]
            if field.name.endswith("_N1"):
                joined[field.name] = bounds_of(np.concatenate([_NONE, *(np.diff(array) for array in arrays)]))
            else:
                joined[field.name] = _joined(arrays, field.name)
        return cls(**joined)

    def digest(self) -> str:
        """128 bits that are equal for equal sequences with equal targets, wherever they came from."""
        digest = blake3()
        for field in fields(self):
            if not field.name.startswith("origin"):
                # Without a copy where it is as `concatenate` makes it.
                dtype = "<i8" if field.name.endswith("_N1") else _KINDS[field.name][0]
                array = np.ascontiguousarray(getattr(self, field.name), dtype=dtype)
                digest.update(f"{field.name} {array.shape} ".encode())
                digest.update(array.reshape(-1).view(np.uint8))
        return digest.hexdigest(16)


_KINDS: dict[str, tuple[str, tuple[int, ...]]] = {
    "tokens_T": ("<i4", ()),
    "token_spans_K2": ("<i4", (2,)),
    "turns_K": ("<i4", ()),
    "is_end_K": ("?", ()),
    "weights_K": ("<f4", ()),
    "num_targets_N": ("<i4", ()),
    "num_units_N": ("<i4", ()),
    "content_hashes_N16": ("u1", (16,)),
    "origins_P": ("u1", ()),
}


def text_hash(data: bytes) -> bytes:
    """128 bits that are equal for conversations that are rendered to the same text.

    Args:
        data: The text in UTF-8.

    Returns:
        Its BLAKE3 hash, cut off at 16 bytes.
    """
    return blake3(data).digest(16)


_NONE: Int64Array = np.zeros(0, dtype=np.int64)


def bounds_of(lengths: Sequence[int] | Int64Array) -> Int64Array:
    """Where each of things of these lengths begins, and behind them where the last one ends."""
    bounds: Int64Array = np.zeros(1 + len(lengths), dtype="<i8")
    np.cumsum(lengths, out=bounds[1:])
    return bounds


def _joined(arrays: Sequence[npt.NDArray[Any]], name: str) -> npt.NDArray[Any]:
    dtype, shape = _KINDS[name]
    return np.concatenate([np.zeros((0, *shape), dtype=dtype), *arrays], dtype=dtype, casting="same_kind")


class SequenceShards:
    """Sequences in several arrays, counted through.

    Args:
        shards: The arrays, in order.

    Attributes:
        shards: The arrays, in order.
        shard_bounds: Index of the first sequence of each, and the number of all behind.

    Examples:
        >>> SequenceShards([SequenceArrays.concatenate([])]).shard_bounds.tolist()
        [0, 0]
    """

    def __init__(self, shards: Sequence[SequenceArrays]) -> None:
        self.shards = tuple(shards)
        self.shard_bounds = np.cumsum([0, *map(len, shards)])

    # Of millions of sequences, what nobody asks for is not read from the disk.
    @cached_property
    def num_tokens_N(self) -> Int64Array:
        """Tokens of each sequence."""
        counts: Int64Array = np.empty(len(self), dtype=np.int64)
        for shard, first in zip(self.shards, self.shard_bounds, strict=False):
            bounds = shard.token_bounds_N1
            np.subtract(bounds[1:], bounds[:-1], out=counts[first : first + len(shard)])
        return counts

    @cached_property
    def num_targets_N(self) -> Int64Array:
        """Trained tokens of each sequence."""
        return np.concatenate([_NONE, *(shard.num_targets_N for shard in self.shards)])

    @cached_property
    def num_units_N(self) -> Int64Array:
        """What each sequence adds to the divisor of the loss."""
        return np.concatenate([_NONE, *(shard.num_units_N for shard in self.shards)])

    def __len__(self) -> int:
        return int(self.shard_bounds[-1])

    def __getitem__(self, index: int) -> EncodedConversation:
        """The sequence with an index."""
        shard, local = self.find(index)
        return shard[local]

    def find(self, index: int) -> tuple[SequenceArrays, int]:
        """The arrays that hold a sequence, and its index there."""
        if not 0 <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        number = int(np.searchsorted(self.shard_bounds, index, "right")) - 1
        return self.shards[number], index - int(self.shard_bounds[number])

    def origin(self, index: int) -> str:
        """Where the conversation of a sequence came from, as `file:line`."""
        shard, local = self.find(index)
        return shard.origin(local)

    def origins(self) -> Iterator[str]:
        """Where the conversation of each sequence came from."""
        return map(self.origin, range(len(self)))

    def content_hashes(self) -> Iterator[bytes]:
        """The content hash of each sequence's conversation."""
        for shard in self.shards:
            yield from map(bytes, shard.content_hashes_N16)
