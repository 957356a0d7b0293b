# SPDX-License-Identifier: Apache-2.0
"""Tokens in a terminal: nothing invisible, nothing lost, marks around what they mark."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primus.cli.token_lines import Kind, Piece, token_lines, visible


def lines(*pieces: Piece, in_colour: bool = False, width: int = 80) -> list[str]:
    return [line.text for line in token_lines(pieces, in_colour=in_colour, width=width, shows_spaces=True)]


def test_marks_tell_a_control_token_from_its_spelling() -> None:
    assert lines(Piece("<|im_end|>"), Piece("<|im_end|>", kind="control"), Piece("a", 1.0)) == [
        "<|im_end|>\u00ab<|im_end|>\u00bb\u27e6a\u27e7"
    ]


def test_marks_stay_on_the_line_of_what_they_enclose() -> None:
    assert lines(Piece("abcd"), Piece("ef", 1.0), Piece("g"), width=5) == ["abcd", "\u27e6ef\u27e7g"]


def test_a_weight_other_than_one_has_a_colour_of_its_own() -> None:
    assert lines(Piece("a", 1.0), Piece("b", 0.5), in_colour=True) == ["\x1b[30;42ma\x1b[0m\x1b[30;43mb\x1b[0m"]


def test_an_emoji_of_several_characters_stays_whole_and_a_lone_joiner_is_shown() -> None:
    family = "\U0001f468\u200d\U0001f469"
    assert lines(Piece(f"{family} a\u200db")) == [f"{family}\u00b7a\\u200db"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [("\u200b", "\\u200b"), ("\u202e", "\\u202e"), ("\u00a0", "\\xa0"), ("\u3000", "\\u3000"), ("\x1b[0m", "\\x1b[0m"),
     ("\u2028", "\\u2028"), ("\t", "\\t"), ("\r\n", "\\r\u21b5"),
     ("\U000e0067", "\\U000e0067"), ("e\u0301", "e\u0301")],
)  # fmt: skip
def test_what_cannot_be_seen_is_named(text: str, shown: str) -> None:
    assert visible(text) == shown


KINDS: list[Kind] = ["text", "control", "marker", "unknown", "lost", "cut"]
pieces = st.builds(
    Piece,
    st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="\u27e6\u27e7\u00ab\u00bb\u27e8\u27e9"), max_size=20
    ),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from(KINDS),
)


@given(st.lists(pieces, max_size=6), st.integers(30, 90))
def test_all_of_the_text_is_there_and_what_is_trained_is_marked(some: list[Piece], width: int) -> None:
    whole = "".join(lines(*some, width=width))
    plain = whole.translate({ord(mark): None for mark in "\u27e6\u27e7\u00ab\u00bb\u27e9"}).replace("\u27e8lost ", "")
    assert plain == "".join(visible(piece.text) for piece in some)
    trained = "".join(part.split("\u27e7")[0] for part in whole.split("\u27e6")[1:])
    trained = trained.translate({ord(mark): None for mark in "\u00ab\u00bb\u27e9"}).replace("\u27e8lost ", "")
    assert trained == "".join(visible(piece.text) for piece in some if piece.weight)
