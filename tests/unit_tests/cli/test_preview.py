# SPDX-License-Identifier: Apache-2.0
"""The preview of a sequence: all of its text, and exactly what is trained marked."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primus.cli.preview import preview


class Characters:
    """A tokenizer of one token per character."""

    def decode(self, ids: Sequence[int]) -> str:
        """The characters of code points."""
        return "".join(map(chr, ids))


def show(*pieces: tuple[str, bool], in_colour: bool = False, width: int = 100, padding: int = 3) -> list[str]:
    """The preview of a sequence made of pieces that are trained or not."""
    tokens_T = [ord(character) for text, _ in pieces for character in text]
    trained_T = [is_trained for text, is_trained in pieces for _ in text]
    return preview(
        input_ids_S=[*tokens_T[:-1], *[0] * padding],
        labels_S=[*tokens_T[1:], *[0] * padding],
        loss_mask_S=[*map(float, trained_T[1:]), *[0.0] * padding],
        num_positions=len(tokens_T) - 1,
        tokenizer=Characters(),
        in_colour=in_colour,
        width=width,
    )


def test_what_is_trained_stands_between_marks() -> None:
    assert show(("<user>Hi<end>\n<assistant>", False), ("Hello.<end>", True), ("\n", False)) == [
        "  <user>Hi<end>\u21b5",
        "  <assistant>\u27e6Hello.<end>\u27e7\u21b5",
    ]


def test_marks_span_the_lines_of_an_answer() -> None:
    assert show(("Q\n", False), ("one\ntwo", True)) == ["  Q\u21b5", "  \u27e6one\u21b5", "  two\u27e7"]


def test_in_colour_every_line_of_an_answer_is_on_green() -> None:
    lines = show(("Q\n", False), ("one\ntwo", True), ("!", False), in_colour=True)
    assert lines == ["  Q\u21b5", "  \x1b[30;42mone\u21b5\x1b[0m", "  \x1b[30;42mtwo\x1b[0m!"]


def test_control_characters_are_shown_and_reach_no_terminal() -> None:
    (line,) = show(("a\x1b[31mb\tc\x00d\u202ee", False))
    assert line == r"  a\x1b[31mb\tc\x00d\u202ee"


def test_a_wide_character_takes_two_columns() -> None:
    assert show(("\u4f60" * 10, False), width=13) == ["  " + "\u4f60" * 5, "  " + "\u4f60" * 5]


def test_the_middle_of_a_long_stretch_is_counted_instead_of_shown() -> None:
    lines = show(("".join(f"{number}\n" for number in range(40)), False), ("yes", True))
    assert lines[:5] == ["  0\u21b5", "  1\u21b5", "  2\u21b5", "  3\u21b5", "  ... 32 lines of the same kind"]
    assert lines[5:] == ["  36\u21b5", "  37\u21b5", "  38\u21b5", "  39\u21b5", "  \u27e6yes\u27e7"]


def test_a_sequence_of_many_turns_ends_after_a_hundred_lines() -> None:
    turns = [piece for number in range(90) for piece in ((f"ask {number}\n", False), ("answer\n", True))]
    lines = show(*turns)
    assert len(lines) == 101
    assert lines[-1] == "  ... 80 more lines"


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u27e6\u27e7"), max_size=60)


@pytest.mark.parametrize("in_colour", [False, True])
@given(pieces=st.lists(st.tuples(TEXT, st.booleans()), min_size=1, max_size=6), width=st.integers(24, 100))
def test_lines_fit_and_the_marked_text_is_what_is_trained(
    pieces: list[tuple[str, bool]], width: int, *, in_colour: bool
) -> None:
    pieces = [("^^", False), *pieces]  # the first token is never a target
    lines = show(*pieces, in_colour=in_colour, width=width)
    if any("lines of the same kind" in line for line in lines):
        return
    shown = "".join(line[2:] for line in lines)
    opening, closing = ("\x1b[30;42m", "\x1b[0m") if in_colour else ("\u27e6", "\u27e7")
    trained = "".join(part.split(closing)[0] for part in shown.split(opening)[1:])
    assert trained == visible("".join(text for text, is_trained in pieces if is_trained))
    assert shown.replace(opening, "").replace(closing, "") == visible("".join(text for text, _ in pieces))
    bare = [line.replace(opening, "").replace(closing, "") if in_colour else line for line in lines]
    assert all(len(line) <= width for line in bare if line.replace("\u27e6", "").replace("\u27e7", "").isascii())


def visible(text: str) -> str:
    """A text as the preview shows it."""
    return "".join(line[2:] for line in show((f"^^{text}", False), width=10_000))[2:]
