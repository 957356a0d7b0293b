# SPDX-License-Identifier: Apache-2.0
"""The quick searches find what those of `bytes` find."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primus.chat.reading.byte_search import count_byte, has_any

WORDS = (b'_id"', b"\\u00")
PIECES = [*WORDS, b"_", b"i", b"d", b'"', b"\\", b"u", b"0", b"\xff"]


@given(st.lists(st.sampled_from(PIECES)).map(b"".join))
def test_they_find_what_bytes_find(data: bytes) -> None:
    assert has_any(data, *WORDS) == any(word in data for word in WORDS)
    assert [has_any(data, word) for word in WORDS] == [word in data for word in WORDS]
    assert [count_byte(data, byte) for byte in PIECES[2:]] == [data.count(byte) for byte in PIECES[2:]]


def test_a_word_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="have not all 4 bytes"):
        has_any(b"abcdef", b"abc")
