# SPDX-License-Identifier: Apache-2.0
"""The tokens of spans, by the bytes of tokens: for many texts at once, without the characters of every token.

N: texts. T: tokens of all texts. E: edges of the spans of all texts. M: markers of all texts. B: bytes of all texts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from primus.sft.formatters.rendered import TextBatch
from primus.sft.tokenizer.base import IntArray
from primus.sft.tokenizer.flat import VocabularyTables

Int32Array = npt.NDArray[np.int32]
BoolArray = npt.NDArray[np.bool_]
_WORD = 8
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

    def are_at(self, ids_T: Int32Array, starts_T: IntArray, bytes_B: npt.NDArray[np.uint8]) -> BoolArray:
        """Whether the bytes of ids stand at places.

        Args:
            ids_T: The ids.
            starts_T: The place of the first byte of each.
            bytes_B: The bytes, with eight more behind them.

        Returns:
            The answer for each id; False for one without bytes.
        """
        last = len(bytes_B) - _WORD
        # A word may begin at any byte, so the words overlap.
        words_B = np.ndarray(last + 1, dtype="<u8", buffer=bytes_B, strides=(1,))
        num_bytes_T = self.num_bytes_V[ids_T]
        differ_T = words_B[starts_T]
        differ_T ^= self._first_words_V[ids_T]
        differ_T &= _MASKS[np.minimum(num_bytes_T, _WORD)]
        is_there_T: BoolArray = differ_T == 0
        if not num_bytes_T.all():
            is_there_T &= num_bytes_T > 0
        long_L = np.flatnonzero(num_bytes_T > _WORD)
        done = _WORD
        while len(long_L):
            rest_L = np.minimum(num_bytes_T[long_L] - done, _WORD)
            words_L = words_B[np.minimum(starts_T[long_L] + done, last)]
            wanted_L = self._words[self._at_V[ids_T[long_L]] + done // _WORD]
            is_there_T[long_L] &= (words_L ^ wanted_L) & _MASKS[rest_L] == 0
            done += _WORD
            long_L = long_L[num_bytes_T[long_L] > done]
        return is_there_T


def find_spans(batch: TextBatch, ids_T: Int32Array, token_bounds_N1: IntArray, *, words: TokenWords) -> FlatTokens:
    """Find the tokens of the spans of texts whose ids are there.

    Args:
        batch: The texts.
        ids_T: The ids of all texts, as the tokenizer gives them for each whole text.
        token_bounds_N1: Where the ids of each text begin, and the number of all behind.
        words: What the ids stand for.

    Returns:
        The tokens, with what is found of them.
    """
    data = [text.encode() for text in batch.texts]
    bytes_B = np.frombuffer(b"".join([*data, bytes(_WORD)]), dtype=np.uint8)
    byte_bounds_N1 = _bounds([len(part) for part in data])
    starts_T1, is_exact_N = _places(ids_T, token_bounds_N1, byte_bounds_N1, words=words)
    starts_T = starts_T1[:-1]
    is_there_T = words.are_at(ids_T, starts_T, bytes_B)
    if not is_there_T.all():
        is_exact_N[_text_of(np.flatnonzero(~is_there_T), token_bounds_N1)] = False
    char_bounds_N1 = _bounds([len(text) for text in batch.texts])
    num_edges_N = 2 * np.array(batch.num_spans, dtype=np.int64)
    edges_E = np.array(batch.edges, dtype=np.int64) + np.repeat(char_bounds_N1[:-1], num_edges_N)
    markers_M = np.array(batch.markers, dtype=np.int64) + np.repeat(char_bounds_N1[:-1], batch.num_markers)
    if char_bounds_N1[-1] != byte_bounds_N1[-1]:
        # The first of the bytes behind the texts stands for the end of the last one.
        byte_of_char = np.flatnonzero((bytes_B[: 1 - _WORD] & 0xC0) != 0x80)
        edges_E, markers_M = byte_of_char[edges_E], byte_of_char[markers_M]
    wanted_M = np.array([words.control_tokens.get(word, -1) for word in batch.words], dtype=np.int64)
    markers_M, wanted_M = markers_M[wanted_M >= 0], wanted_M[wanted_M >= 0]
    control_C = np.flatnonzero(words.is_control_V[ids_T])
    found_C, ids_C = starts_T[control_C], ids_T[control_C]
    if not (np.array_equal(found_C, markers_M) and np.array_equal(ids_C, wanted_M)):
        is_exact_N &= ~_differ(found_C, ids_C, markers_M, wanted_M, byte_bounds_N1)
    token_E = np.searchsorted(starts_T, edges_E)
    is_crossed_E = starts_T1[token_E] != edges_E
    text_of_E = np.repeat(np.arange(len(data)), num_edges_N)
    is_exact_N[text_of_E[is_crossed_E]] = False
    return FlatTokens(
        ids_T, token_bounds_N1, (token_E - token_bounds_N1[text_of_E]).reshape(-1, 2), is_exact_N=is_exact_N
    )


def _places(
    ids_T: Int32Array, token_bounds_N1: IntArray, byte_bounds_N1: IntArray, *, words: TokenWords
) -> tuple[IntArray, BoolArray]:
    """The place of the first byte of each token, with the end of all texts behind, and which texts have as many bytes.

    The places never decrease: all tokens of a text that has another number of bytes are put at its beginning.
    """
    starts_T1 = np.zeros(len(ids_T) + 1, dtype=np.int64)
    np.cumsum(words.num_bytes_V[ids_T], out=starts_T1[1:])
    is_exact_N = np.diff(starts_T1[token_bounds_N1]) == np.diff(byte_bounds_N1)
    if not is_exact_N.all():
        num_tokens_N = np.diff(token_bounds_N1)
        begins_T = np.repeat(byte_bounds_N1[:-1], num_tokens_N)
        moved_T = starts_T1[:-1] + begins_T - np.repeat(starts_T1[token_bounds_N1[:-1]], num_tokens_N)
        starts_T1[:-1] = np.where(np.repeat(is_exact_N, num_tokens_N), moved_T, begins_T)
        starts_T1[-1] = byte_bounds_N1[-1]
    return starts_T1, is_exact_N


def _differ(
    found_C: IntArray, ids_C: Int32Array, markers_M: IntArray, wanted_M: IntArray, byte_bounds_N1: IntArray
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
