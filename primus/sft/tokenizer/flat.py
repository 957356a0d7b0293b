# SPDX-License-Identifier: Apache-2.0
"""Many texts through a byte-level vocabulary at once, with arrays that lie behind one another.

N: texts. T: tokens of all of them. K: control tokens of all of them. B: bytes of all of them.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from primus.sft.tokenizer.base import Encoding, IntArray, MarkedText, crossed_edges


class VocabularyTables:
    """What is known of each id of a byte-level vocabulary.

    Args:
        token_bytes: The bytes of each id.
        control_tokens: The control tokens by their text.

    Attributes:
        num_bytes_V: How many bytes each id has.
        is_control_V: Which ids are control tokens.
        control_tokens: The control tokens by their text.
    """

    def __init__(self, token_bytes: Sequence[bytes], control_tokens: Mapping[str, int]) -> None:
        self.num_bytes_V = np.fromiter(map(len, token_bytes), dtype=np.int32, count=len(token_bytes))
        self.control_tokens = control_tokens
        self.is_control_V = np.zeros(len(token_bytes), dtype=np.bool_)
        self.is_control_V[list(control_tokens.values())] = True


class ByteVocabulary(VocabularyTables):
    """A byte-level vocabulary as tables, with the bytes of all ids one after another."""

    def __init__(self, token_bytes: Sequence[bytes], control_tokens: Mapping[str, int]) -> None:
        super().__init__(token_bytes, control_tokens)
        self._bytes = np.frombuffer(b"".join(token_bytes), dtype=np.uint8)
        self._first_V = (np.cumsum(self.num_bytes_V) - self.num_bytes_V).astype(np.int32)

    def bytes_of(self, ids_T: IntArray, ends_T: IntArray) -> npt.NDArray[np.uint8]:
        """The bytes of ids, one after another.

        Args:
            ids_T: The ids.
            ends_T: Where the bytes of each end.

        Returns:
            All their bytes.
        """
        num_bytes_T = self.num_bytes_V[ids_T]
        shift_T = self._first_V[ids_T] - (ends_T.astype(np.int32) - num_bytes_T)
        at_B = np.repeat(shift_T, num_bytes_T)
        at_B += np.arange(len(at_B), dtype=np.int32)
        gathered: npt.NDArray[np.uint8] = self._bytes[at_B]
        return gathered


def encode_plain_texts(
    texts: Sequence[MarkedText], ids_T: IntArray, first_N: IntArray, *, vocabulary: ByteVocabulary
) -> list[Encoding | None]:
    """The offsets of ids that are already there, for texts in which nothing special happens.

    Args:
        texts: The texts.
        ids_T: The ids of all texts, one after another, as the tokenizer gives them for each whole text.
        first_N: Where the ids of each text begin, and behind them the number of all.
        vocabulary: What the ids stand for.

    Returns:
        For each text its encoding, or None if the ids are not its bytes, its control tokens are not exactly those at
        its markers, or a token crosses the edge of a span.
    """
    data = [marked.text.encode() for marked in texts]
    bytes_B = np.frombuffer(b"".join(data), dtype=np.uint8)
    ends_T = np.cumsum(vocabulary.num_bytes_V[ids_T], dtype=np.int64)
    if not np.array_equal(bytes_B, vocabulary.bytes_of(ids_T, ends_T)):
        return _without_changed(texts, data, ids_T, first_N, vocabulary=vocabulary)
    base_N = _bounds(len(marked.text) for marked in texts)
    offsets_T2 = _offsets(bytes_B, ends_T, vocabulary.num_bytes_V[ids_T])
    wanted_K3 = _wanted(texts, base_N, vocabulary.control_tokens)
    control_K = np.flatnonzero(vocabulary.is_control_V[ids_T])
    found_K3 = np.column_stack([offsets_T2[control_K], ids_T[control_K]])
    bad_N = np.zeros(len(texts), dtype=np.bool_)
    if not np.array_equal(found_K3, wanted_K3):
        bad_N |= _differs(found_K3, wanted_K3, base_N)
    edges = [
        e + base for marked, base in zip(texts, base_N.tolist(), strict=False) for span in marked.spans for e in span
    ]
    crossed = crossed_edges(offsets_T2, np.array(edges, dtype=np.int64))
    bad_N[np.searchsorted(base_N, crossed, "right") - 1] = True
    offsets_T2 -= np.repeat(base_N[:-1], np.diff(first_N))[:, np.newaxis]
    bounds = first_N.tolist()
    return [
        None if is_bad else Encoding(ids_T[first:last], offsets_T2[first:last])
        for is_bad, first, last in zip(bad_N.tolist(), bounds[:-1], bounds[1:], strict=True)
    ]


def _without_changed(
    texts: Sequence[MarkedText],
    data: Sequence[bytes],
    ids_T: IntArray,
    first_N: IntArray,
    *,
    vocabulary: ByteVocabulary,
) -> list[Encoding | None]:
    """The encodings of the texts of which the ids are the bytes; None for the others, which a normalizer changed."""
    bounds = first_N.tolist()
    encodings: list[Encoding | None] = []
    for marked, its_bytes, first, last in zip(texts, data, bounds[:-1], bounds[1:], strict=True):
        ids = ids_T[first:last]
        ends_T = np.cumsum(vocabulary.num_bytes_V[ids], dtype=np.int64)
        if np.array_equal(np.frombuffer(its_bytes, dtype=np.uint8), vocabulary.bytes_of(ids, ends_T)):
            encodings += encode_plain_texts([marked], ids, np.array([0, len(ids)]), vocabulary=vocabulary)
        else:
            encodings.append(None)
    return encodings


def _bounds(lengths: object) -> IntArray:
    """Where each of things of these lengths begins, and behind them where the last one ends."""
    return np.concatenate([[0], np.cumsum(np.fromiter(lengths, dtype=np.int64))])  # type: ignore[call-overload]


def _offsets(bytes_B: npt.NDArray[np.uint8], ends_T: IntArray, num_bytes_T: npt.NDArray[np.int32]) -> IntArray:
    """The characters of tokens, of which each has at least a byte."""
    offsets_T2 = np.empty((len(ends_T), 2), dtype=np.int64)
    char_of_byte_B = np.cumsum((bytes_B & 0xC0) != 0x80, dtype=np.int32)
    offsets_T2[:, 0], offsets_T2[:, 1] = char_of_byte_B[ends_T - num_bytes_T] - 1, char_of_byte_B[ends_T - 1]
    return offsets_T2


def _wanted(texts: Sequence[MarkedText], base_N: IntArray, control_tokens: Mapping[str, int]) -> IntArray:
    """Start, end and id of every control token that is meant."""
    wanted = [
        (start + base, end + base, token_id)
        for (text, markers, _), base in zip(texts, base_N.tolist(), strict=False)
        for start, end in markers
        if (token_id := control_tokens.get(text[start:end])) is not None
    ]
    return np.array(wanted, dtype=np.int64).reshape(-1, 3)


def _differs(found_K3: IntArray, wanted_K3: IntArray, base_N: IntArray) -> npt.NDArray[np.bool_]:
    """Which texts have other control tokens than they should."""
    found_N, wanted_N = np.searchsorted(found_K3[:, 0], base_N), np.searchsorted(wanted_K3[:, 0], base_N)
    return np.array(
        [
            not np.array_equal(found_K3[found_N[n] : found_N[n + 1]], wanted_K3[wanted_N[n] : wanted_N[n + 1]])
            for n in range(len(base_N) - 1)
        ],
        dtype=np.bool_,
    )
