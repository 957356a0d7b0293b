# SPDX-License-Identifier: Apache-2.0
"""The bytes of tokens, compared word by word, are what comparing them one by one gives."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from primus.sft.tokenizer import token_edges
from primus.sft.tokenizer.token_edges import TokenWords

LENGTHS = st.sampled_from([1, 1, 2, 7, 8, 9, 15, 16, 17, 24, 25, 40])
TOKENS = st.lists(st.integers(0, 5), min_size=1, max_size=12)


def different(vocabulary: list[bytes], ids: list[int], text: bytes, starts: list[int]) -> set[int]:
    words = TokenWords(vocabulary, {})
    ids_T = np.array(ids, dtype=np.intp)
    bytes_B = np.frombuffer(text + bytes(16), dtype=np.uint8)
    found = words.are_not_at(ids_T, words.small_num_bytes_V[ids_T], np.array(starts, dtype=np.int64), bytes_B)
    return set(found.tolist())


@given(
    lengths=st.lists(LENGTHS, min_size=6, max_size=6),
    ids=TOKENS,
    changed=st.lists(st.integers(0, 10**6), max_size=2),
    at_once=st.sampled_from([3, 8192]),
)
def test_tokens_that_are_not_there_are_found(
    lengths: list[int], ids: list[int], changed: list[int], at_once: int
) -> None:
    vocabulary = [bytes(range(16 * i, 16 * i + 40))[:length] for i, length in enumerate(lengths)]
    text = bytearray(b"".join(vocabulary[i] for i in ids))
    starts = np.cumsum([0, *(lengths[i] for i in ids)])[:-1].tolist()
    for place in changed:
        text[place % len(text)] ^= 1
    expected = {
        n for n, (i, start) in enumerate(zip(ids, starts, strict=True))
        if text[start : start + lengths[i]] != vocabulary[i]
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_edges, "_AT_ONCE", at_once)
        assert different(vocabulary, ids, bytes(text), starts) == expected


def test_a_token_without_bytes_is_nowhere() -> None:
    assert different([b"a", b"", b"b"], [0, 1, 2], b"ab", [0, 1, 1]) == {1}


@pytest.mark.parametrize("length", [9, 40, 1000])
def test_a_token_that_is_longer_than_all_that_is_left_is_not_there(length: int) -> None:
    assert different([b"x" * length, b"y"], [1, 0], b"yxxx", [1, 1]) == {0, 1}


def test_every_bit_of_a_long_token_counts() -> None:
    token = bytes(range(27))
    for place in range(len(token)):
        text = bytearray(token)
        text[place] ^= 0x80
        assert different([b"z", token], [0, 1], b"z" + bytes(text), [0, 1]) == {1}
