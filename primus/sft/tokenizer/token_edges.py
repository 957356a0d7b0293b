# SPDX-License-Identifier: Apache-2.0
"""The tokens of spans, by the bytes of tokens: for many texts at once, without the characters of every token.

N: texts. T: tokens of all texts. E: edges of the spans of all texts. M: markers of all texts. B: bytes of all texts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from primus.sft.formatters.flat_texts import FlatTexts
from primus.sft.tokenizer.base import IntArray
from primus.sft.tokenizer.flat import VocabularyTables

Int32Array = npt.NDArray[np.int32]
BoolArray = npt.NDArray[np.bool_]
_NONE: IntArray = np.zeros(0, dtype=np.int64)
_WORD = 8
_ONE, _MOST_BITS = np.uint64(1), np.uint64(63)
# So many tokens at once that what is computed of them stays in the processor's cache.
_AT_ONCE = 8192
# Which bits of a word are those of its first bytes, by their number.
_MASKS = np.array([(1 << (8 * num)) - 1 for num in range(_WORD + 1)], dtype="<u8")


@dataclass(frozen=True, slots=True)
class FlatTokens:
    """The tokens of many texts.

    Attributes:
        ids_T: Token ids.
        token_bounds_N1: Where the tokens of each text begin, and the number of all behind; shape [N + 1].
        token_spans_K2: Tokens `[first, last)` of each span, counted from the first of its text.
        is_exact_N: Whether that holds for a text. It does not where a token crosses the edge of a span, a control token
            stands elsewhere than at a marker, or the tokens are not the text's bytes; `SFTTokenizer.encode` can tell.
    """

    ids_T: Int32Array
    token_bounds_N1: IntArray
    token_spans_K2: IntArray
    is_exact_N: BoolArray


class TokenWords(VocabularyTables):
    """A byte-level vocabulary as tables, with the bytes of each id as words of eight."""

    def __init__(self, token_bytes: Sequence[bytes], control_tokens: Mapping[str, int]) -> None:
        super().__init__(token_bytes, control_tokens)
        num_words_V = -(-self.num_bytes_V.astype(np.int64) // _WORD)
        padded = [word.ljust(_WORD * num, b"\0") for word, num in zip(token_bytes, num_words_V.tolist(), strict=True)]
        self._words = np.frombuffer(b"".join([*padded, bytes(_WORD)]), dtype="<u8")
        self._at_V = np.cumsum(num_words_V) - num_words_V
        self._first_words_V = self._words[self._at_V]
        self._first_masks_V = _MASKS[np.minimum(self.num_bytes_V, _WORD)]
        # The table that is read for every token, as small as it can be.
        self.small_num_bytes_V = self.num_bytes_V.astype(np.min_scalar_type(self.num_bytes_V.max(initial=0)))
        self._first_control = min(control_tokens.values(), default=len(token_bytes))

    def control_tokens_in(self, ids_T: IntArray) -> IntArray:
        """Which of ids are control tokens, as indices."""
        # Most vocabularies have them behind all others.
        at_C = np.flatnonzero(ids_T >= self._first_control)
        return at_C[self.is_control_V[ids_T[at_C]]]

    def are_not_at(
        self, ids_T: IntArray, num_bytes_T: npt.NDArray[Any], starts_T: IntArray, bytes_B: npt.NDArray[np.uint8]
    ) -> IntArray:
        """Which of ids have other bytes than there are at places.

        Args:
            ids_T: The ids.
            num_bytes_T: How many bytes each has.
            starts_T: The place of the first byte of each.
            bytes_B: The bytes, with sixteen more behind them.

        Returns:
            Their indices; those without bytes are among them.
        """
        words = bytes_B[: len(bytes_B) // _WORD * _WORD].view("<u8")
        different = [self._without(ids_T, num_bytes_T), *self._longer(ids_T, num_bytes_T, starts_T, words)]
        for first in range(0, len(ids_T), _AT_ONCE):
            ids_P = ids_T[first : first + _AT_ONCE]
            differ_P = _words_at(words, starts_T[first : first + _AT_ONCE])
            differ_P ^= self._first_words_V.take(ids_P)
            differ_P &= self._first_masks_V.take(ids_P)
            if differ_P.any():
                different.append(first + np.flatnonzero(differ_P))
        return np.concatenate(different)

    def _without(self, ids_T: IntArray, num_bytes_T: npt.NDArray[Any]) -> IntArray:
        """Which ids have no bytes."""
        return _NONE if num_bytes_T.all() else np.flatnonzero(self.num_bytes_V[ids_T] == 0)

    def _longer(
        self, ids_T: IntArray, num_bytes_T: npt.NDArray[Any], starts_T: IntArray, words: npt.NDArray[np.uint64]
    ) -> Iterator[IntArray]:
        """Which ids differ in their second word, in their third, and so on."""
        at_L = np.flatnonzero(num_bytes_T > _WORD)
        num_bytes_L, ids_L, starts_L = num_bytes_T[at_L].astype(np.int64), ids_T[at_L], starts_T[at_L]
        word = 1
        while len(at_L):
            # All tokens together may have more bytes than there are.
            places_L = np.minimum(starts_L + _WORD * word, _WORD * (len(words) - 1) - 1)
            differ_L = _words_at(words, places_L)
            differ_L ^= self._words.take(self._at_V.take(ids_L) + word)
            differ_L &= _MASKS.take(np.minimum(num_bytes_L - _WORD * word, _WORD))
            if differ_L.any():
                yield at_L[differ_L != 0]
            word += 1
            is_longer_L = num_bytes_L > _WORD * word
            at_L, num_bytes_L, ids_L, starts_L = (array[is_longer_L] for array in (at_L, num_bytes_L, ids_L, starts_L))


def _words_at(words: npt.NDArray[np.uint64], starts_T: IntArray) -> npt.NDArray[np.uint64]:
    """The eight bytes from any byte on, out of the two words that hold them.

    Args:
        words: All bytes as words, with one more behind the last that is asked for.
        starts_T: Bytes.

    Returns:
        The words that begin there.

    Examples:
        >>> words = np.frombuffer(b"abcdefghijklmnopqrstuvwx", dtype="<u8")
        >>> _words_at(words, np.array([0, 3, 8])).tobytes()
        b'abcdefghdefghijkijklmnop'
    """
    at_T = starts_T >> 3
    num_bits_T = ((starts_T & 7) << 3).view(np.uint64)
    low_T = words.take(at_T)
    low_T >>= num_bits_T
    at_T += 1
    high_T = words.take(at_T)
    high_T <<= _ONE  # shifting by 64 bits at once is not defined
    high_T <<= _MOST_BITS - num_bits_T
    high_T |= low_T
    return high_T


def find_spans(batch: FlatTexts, ids_T: Int32Array, token_bounds_N1: IntArray, *, words: TokenWords) -> FlatTokens:
    """Find the tokens of the spans of texts whose ids are there.

    Args:
        batch: The texts.
        ids_T: The ids of all texts, as the tokenizer gives them for each whole text.
        token_bounds_N1: Where the ids of each text begin, and the number of all behind.
        words: What the ids stand for.

    Returns:
        The tokens, with what is found of them.
    """
    bytes_B = np.frombuffer(b"".join([*batch.data, bytes(2 * _WORD)]), dtype=np.uint8)
    byte_bounds_N1 = _bounds([len(part) for part in batch.data])
    places_T = ids_T.astype(np.intp)  # what tables are asked with
    num_bytes_T = words.small_num_bytes_V.take(places_T)
    starts_T1, is_exact_N = _places(num_bytes_T, token_bounds_N1, byte_bounds_N1)
    starts_T = starts_T1[:-1]
    different = words.are_not_at(places_T, num_bytes_T, starts_T, bytes_B)
    if len(different):
        is_exact_N[_text_of(different, token_bounds_N1)] = False
    edges_E = batch.edges_E + np.repeat(byte_bounds_N1[:-1], 2 * batch.num_spans_N)
    markers_M = batch.markers_M + np.repeat(byte_bounds_N1[:-1], batch.num_markers_N)
    ids_of_words = np.array([words.control_tokens.get(word, -1) for word in batch.words], dtype=np.int64)
    wanted_M = ids_of_words[batch.words_M]
    if (ids_of_words < 0).any():
        markers_M, wanted_M = markers_M[wanted_M >= 0], wanted_M[wanted_M >= 0]
    control_C = words.control_tokens_in(places_T)
    found_C, ids_C = starts_T[control_C], places_T[control_C]
    if not (np.array_equal(found_C, markers_M) and np.array_equal(ids_C, wanted_M)):
        is_exact_N &= ~_differ(found_C, ids_C, markers_M, wanted_M, byte_bounds_N1)
    token_E = np.searchsorted(starts_T, edges_E)
    is_crossed_E = starts_T1[token_E] != edges_E
    text_of_E = np.repeat(np.arange(len(batch.data)), 2 * batch.num_spans_N)
    is_exact_N[text_of_E[is_crossed_E]] = False
    return FlatTokens(
        ids_T, token_bounds_N1, (token_E - token_bounds_N1[text_of_E]).reshape(-1, 2), is_exact_N=is_exact_N
    )


def _places(
    num_bytes_T: npt.NDArray[Any], token_bounds_N1: IntArray, byte_bounds_N1: IntArray
) -> tuple[IntArray, BoolArray]:
    """The place of the first byte of each token, with the end of all texts behind, and which texts have as many bytes.

    The places never decrease: all tokens of a text that has another number of bytes are put at its beginning.
    """
    starts_T1 = np.zeros(len(num_bytes_T) + 1, dtype=np.int64)
    starts_T1[1:] = num_bytes_T
    np.cumsum(starts_T1, out=starts_T1)
    is_exact_N = np.diff(starts_T1[token_bounds_N1]) == np.diff(byte_bounds_N1)
    if not is_exact_N.all():
        num_tokens_N = np.diff(token_bounds_N1)
        begins_T = np.repeat(byte_bounds_N1[:-1], num_tokens_N)
        moved_T = starts_T1[:-1] + begins_T - np.repeat(starts_T1[token_bounds_N1[:-1]], num_tokens_N)
        starts_T1[:-1] = np.where(np.repeat(is_exact_N, num_tokens_N), moved_T, begins_T)
        starts_T1[-1] = byte_bounds_N1[-1]
    return starts_T1, is_exact_N


def _differ(
    found_C: IntArray, ids_C: IntArray, markers_M: IntArray, wanted_M: IntArray, byte_bounds_N1: IntArray
) -> BoolArray:
    """Which texts have other control tokens than they should."""
    found_N1, wanted_N1 = np.searchsorted(found_C, byte_bounds_N1), np.searchsorted(markers_M, byte_bounds_N1)
    bounds = zip(*(b.tolist() for b in (found_N1[:-1], found_N1[1:], wanted_N1[:-1], wanted_N1[1:])), strict=True)
    return np.array(
        [
            not (np.array_equal(found_C[a:b], markers_M[c:d]) and np.array_equal(ids_C[a:b], wanted_M[c:d]))
            for a, b, c, d in bounds
        ],
        dtype=np.bool_,
    )


def _bounds(lengths: Sequence[int]) -> IntArray:
    return np.cumsum([0, *lengths], dtype=np.int64)


def _text_of(tokens: IntArray, token_bounds_N1: IntArray) -> IntArray:
    return np.searchsorted(token_bounds_N1, tokens, "right") - 1
