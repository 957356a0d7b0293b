# SPDX-License-Identifier: Apache-2.0
"""Scripts, words and odd characters of a text."""

import unicodedata
from collections import Counter

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from primus.sft.stats.code_blocks import find_code_blocks
from primus.sft.stats.writing import SCRIPTS, count_odd_characters, count_scripts, words

LETTERS = st.text(st.characters(categories=("L", "M", "N", "P", "Z", "S")), max_size=30)


@given(LETTERS)
def test_letters_are_counted_by_their_script(text: str) -> None:
    expected: Counter[str] = Counter()
    for character in text:
        if unicodedata.category(character).startswith("L"):
            names = [name for name in (*SCRIPTS, "Common") if regex.match(rf"\p{{Script={name}}}", character)]
            expected[names[0] if names else "Other"] += 1
    assert count_scripts(text) == expected


def test_the_scripts_of_a_sentence_by_hand() -> None:
    assert count_scripts("Привет, 世界! สวัสดี 123 👍 ﷺ") == {"Cyrillic": 6, "Han": 2, "Thai": 4, "Arabic": 1}


@given(
    st.lists(st.sampled_from(["one", "two", "Zwei", "été", "3", "你", "好", "ก"]), max_size=8),
    st.sampled_from([" ", ", ", "\n"]),
)
def test_a_word_has_one_hash_wherever_it_stands(parts: list[str], separator: str) -> None:
    alone = [int(words(part)[0]) for part in parts]
    assert words(separator.join(parts)).tolist() == alone
    assert len(set(alone)) == len(set(parts))


def test_case_width_and_composition_make_no_other_word() -> None:
    assert words("STRASSE caf\u00e9 ＡＢＣ").tolist() == words("straße cafe\u0301 abc").tolist()


def test_no_words_are_none() -> None:
    assert [len(words(text)) for text in ("", " ", "!?", "👍")] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("plain\ttext\r\n", {}),
        ("a\ufffdb\ufffd", {"replacement_character": 2}),
        ("\ufeffa", {"byte_order_mark": 1}),
        ("a\x00b\x1b[0m\x85", {"control_character": 3}),
        ("\ue000\U0010fffd", {"private_use": 2}),
    ],
)
def test_odd_characters_are_counted(text: str, counts: dict[str, int]) -> None:
    assert count_odd_characters(text) == counts


@pytest.mark.parametrize(
    ("text", "languages", "code", "is_unclosed"),
    [
        ("no code", (), "", False),
        ("```\na\n```", ("",), "a\n", False),
        ("```Python title=x\na\nb\n```\n", ("python",), "a\nb\n", False),
        ("```\na\n~~~\nb\n```", ("",), "a\n~~~\nb\n", False),
        ("````\n```\na\n```\n````", ("",), "```\na\n```\n", False),
        ("```\na\n```py\nb", ("",), "a\n```py\nb", True),
        ("1. x\n   ```js\n   a\n   ```\n", ("js",), "   a\n", False),
        ("~~~ a`b`\nx\n~~~", ("a`b`",), "x\n", False),
        ("``` a`b`\nx", (), "", False),
        ("a ``` b", (), "", False),
        ("```\na\n```\nb\n```c\n", ("", "c"), "a\n", True),
    ],
)
def test_fenced_code_is_found(text: str, languages: tuple[str, ...], code: str, is_unclosed: bool) -> None:
    blocks = find_code_blocks(text)
    assert (blocks.languages, blocks.num_chars, blocks.is_unclosed) == (languages, len(code), is_unclosed)
