# SPDX-License-Identifier: Apache-2.0
"""Text in a terminal with every character visible, and what is trained marked: the one way in which tokens are printed.

In colour, what is trained stands on green. Without, it stands between U+27E6 and U+27E7, and a control token between
guillemets, so that one that is only spelled in a message looks different.
"""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Literal, NamedTuple

Kind = Literal["text", "control", "marker", "unknown", "lost", "cut"]

_RESET = "\x1b[0m"
_COLOURS: dict[Kind, str] = {
    "text": "", "control": "\x1b[2m", "marker": "\x1b[2m", "unknown": "\x1b[31m", "lost": "\x1b[9;31m",
    "cut": "\x1b[2m",
}  # fmt: skip
_TRAINED, _TRAINED_CONTROL, _TRAINED_OTHERWISE = "\x1b[30;42m", "\x1b[4;30;42m", "\x1b[30;43m"
_DIM = "\x1b[2m"
_MARKS: dict[Kind, tuple[str, str]] = {"control": ("\u00ab", "\u00bb"), "lost": ("\u27e8lost ", "\u27e9")}
_OPEN, _CLOSE = "\u27e6", "\u27e7"
_NEWLINE, _SPACE = "\u21b5", "\u00b7"
_INVISIBLE = ("Cc", "Cf", "Zl", "Zp", "Cs", "Co", "Cn")
_JOINER, _EMOJI_STYLE = "\u200d", "\ufe0f"


class Piece(NamedTuple):
    """A piece of text.

    Attributes:
        text: The text.
        weight: Factor of its loss; above 0 it is trained.
        kind: What it is.
    """

    text: str
    weight: float = 0.0
    kind: Kind = "text"


class _Glyph(NamedTuple):
    text: str
    look: str
    is_trained: bool
    ends_line: bool = False


class Line(NamedTuple):
    """A line of a terminal.

    Attributes:
        text: What is printed.
        has_trained: Whether something in it is trained.
        has_context: Whether something in it is not.
    """

    text: str
    has_trained: bool
    has_context: bool


def token_lines(pieces: Iterable[Piece], *, in_colour: bool, width: int, shows_spaces: bool = False) -> list[Line]:
    """Print pieces of text in lines.

    Args:
        pieces: The pieces, in order.
        in_colour: Use colours; otherwise marks.
        width: Columns.
        shows_spaces: Print a space as U+00B7.

    Returns:
        Lines of at most so many columns. A newline of the text is shown by an arrow where a line ends, other characters
        that can't be seen by their code.
    """
    glyphs = _glyphs([piece for piece in pieces if piece.text], in_colour=in_colour, shows_spaces=shows_spaces)
    return [
        Line(
            "".join(_painted(row)),
            any(glyph.is_trained for glyph in row),
            not all(glyph.is_trained for glyph in row),
        )
        for row in _wrapped(glyphs, width=width)
    ]


def visible(text: str, *, shows_spaces: bool = True) -> str:
    r"""A text with every character visible.

    Args:
        text: The text.
        shows_spaces: Whether a space becomes U+00B7.

    Returns:
        The text on one line.

    Examples:
        >>> visible("a\tb\u200b c")
        'a\\tb\\u200b·c'
    """
    return "".join(_shown(character, text[:i], shows_spaces=shows_spaces) for i, character in enumerate(text))


def columns(text: str) -> int:
    """Columns that a text takes in a terminal, or one more."""
    return sum(_columns(character) for character in text)


def painted(text: str, piece: Piece) -> str:
    """A text in the colour of a piece."""
    look = _look(piece)
    return f"{look}{text}{_RESET}" if look else text


def _look(piece: Piece) -> str:
    if piece.weight == 1:
        return _TRAINED_CONTROL if piece.kind == "control" else _TRAINED
    return _TRAINED_OTHERWISE if piece.weight else _COLOURS[piece.kind]


def _glyphs(pieces: Sequence[Piece], *, in_colour: bool, shows_spaces: bool) -> list[_Glyph]:
    glyphs: list[_Glyph] = []
    for is_trained, stretch in groupby(pieces, key=lambda piece: piece.weight > 0):
        first = len(glyphs)
        for piece in stretch:
            start = len(glyphs)
            glyphs += _glyphs_of(piece, in_colour=in_colour, shows_spaces=shows_spaces)
            if not in_colour and piece.kind in _MARKS:
                _enclose(glyphs, start, *_MARKS[piece.kind])
        if is_trained and not in_colour:
            _enclose(glyphs, first, _OPEN, _CLOSE)
    return glyphs


def _glyphs_of(piece: Piece, *, in_colour: bool, shows_spaces: bool) -> Iterator[_Glyph]:
    look = _look(piece) if in_colour else ""
    for i, character in enumerate(piece.text):
        text = _shown(character, piece.text[max(0, i - 1) : i], shows_spaces=shows_spaces)
        is_space = in_colour and shows_spaces and not look and character in " \n"
        yield _Glyph(text, _DIM if is_space else look, piece.weight > 0, character == "\n")


def _enclose(glyphs: list[_Glyph], start: int, opening: str, closing: str) -> None:
    """Put marks around the glyphs from `start` on; they stay on the lines of what they enclose."""
    glyphs[start] = glyphs[start]._replace(text=opening + glyphs[start].text)
    glyphs[-1] = glyphs[-1]._replace(text=glyphs[-1].text + closing)


def _shown(character: str, before: str, *, shows_spaces: bool) -> str:
    if character == "\n":
        return _NEWLINE
    if character == " ":
        return _SPACE if shows_spaces else character
    if character == _JOINER and before[-1:] and _is_picture(before[-1]):
        return character
    if unicodedata.category(character) in _INVISIBLE or unicodedata.category(character) == "Zs":
        return character.encode("unicode_escape").decode("ascii")
    return character


def _is_picture(character: str) -> bool:
    return character == _EMOJI_STYLE or unicodedata.category(character) in ("So", "Sk")


def _wrapped(glyphs: Sequence[_Glyph], *, width: int) -> Iterator[list[_Glyph]]:
    row: list[_Glyph] = []
    used = 0
    for glyph in glyphs:
        needed = columns(glyph.text)
        if row and needed and used + needed > width:
            yield row
            row, used = [], 0
        row.append(glyph)
        used += needed
        if glyph.ends_line:
            yield row
            row, used = [], 0
    if row:
        yield row


def _columns(character: str) -> int:
    """Columns of a character in a terminal."""
    if character == _EMOJI_STYLE:
        return 1  # it makes the character before it wide
    if unicodedata.category(character) in ("Mn", "Me") or character == _JOINER:
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _painted(row: Sequence[_Glyph]) -> Iterator[str]:
    for look, run in groupby(row, key=lambda glyph: glyph.look):
        text = "".join(glyph.text for glyph in run)
        yield f"{look}{text}{_RESET}" if look else text
