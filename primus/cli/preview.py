# SPDX-License-Identifier: Apache-2.0
"""A training sequence as a person can check it: what is trained, and every character visible.

Legend: S positions of the sequence, T its tokens.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple, Protocol

_BOLD_GREEN, _PLAIN = "\x1b[1;32m", "\x1b[0m"
_OPEN, _CLOSE = "\u27e6", "\u27e7"
_NEWLINE = "\u21b5"
_LINES_OF_END = 4
_MOST_LINES = 100


class Decoder(Protocol):
    """What turns token ids into text."""

    def decode(self, ids: Sequence[int], /) -> str:
        """The text of ids, control tokens included."""
        ...


class _Glyph(NamedTuple):
    text: str
    is_trained: bool
    ends_line: bool


def preview(
    *,
    input_ids_S: Sequence[int],
    labels_S: Sequence[int],
    loss_mask_S: Sequence[float],
    num_positions: int,
    tokenizer: Decoder,
    in_colour: bool,
    width: int = 100,
) -> list[str]:
    """Show one training sequence, what is trained marked.

    Args:
        input_ids_S: The sequence's tokens.
        labels_S: The token after each.
        loss_mask_S: Weight of each label; above 0 it is trained.
        num_positions: Positions that are not padding.
        tokenizer: Its tokenizer.
        in_colour: Print what is trained in bold green; otherwise it stands between U+27E6 and U+27E7.
        width: Columns.

    Returns:
        Lines. A newline of the text is shown by an arrow where a line ends, other control characters by their code. Of
        a stretch of many lines that are all trained, or all not, the first and the last few are shown, and of all
        lines the first hundred; what is left out is counted.
    """
    tokens_T = [input_ids_S[0], *labels_S[:num_positions]]
    trained_T = [False, *(weight > 0 for weight in loss_mask_S[:num_positions])]
    glyphs = list(_glyphs(_pieces(tokens_T, trained_T, tokenizer=tokenizer)))
    rows = list(_wrapped(glyphs, width=width - 2 if in_colour else width - 4))
    lines = [f"  {line}" for line in (_coloured(rows) if in_colour else _marked(rows))]
    shown: list[str] = []
    for _, stretch in groupby(zip(rows, lines, strict=True), key=_kind):
        shown += _ends([line for _, line in stretch])
    hidden = shown[_MOST_LINES:]
    return shown[:_MOST_LINES] + ([f"  ... {len(hidden):,} more lines"] if hidden else [])


def _kind(pair: tuple[Sequence[_Glyph], str]) -> frozenset[bool]:
    row, _ = pair
    return frozenset(glyph.is_trained for glyph in row)


def _ends(lines: list[str]) -> list[str]:
    """A stretch of lines without its middle, if it is long."""
    if len(lines) <= 3 * _LINES_OF_END:
        return lines
    middle = lines[_LINES_OF_END:-_LINES_OF_END]
    return [*lines[:_LINES_OF_END], f"  ... {len(middle):,} lines of the same kind", *lines[-_LINES_OF_END:]]


def _pieces(tokens_T: Sequence[int], trained_T: Sequence[bool], *, tokenizer: Decoder) -> Iterator[tuple[str, bool]]:
    """The text of each run of tokens that are all trained or all not.

    Decoded as what the whole text gains by the run: by itself, a run may lose a space at its beginning.
    """
    end, so_far = 0, ""
    for is_trained, run in groupby(trained_T):
        start, end = end, end + len(list(run))
        text = tokenizer.decode(tokens_T[:end])
        piece = text[len(so_far) :] if text.startswith(so_far) else tokenizer.decode(tokens_T[start:end])
        yield piece, is_trained
        so_far = text


def _glyphs(pieces: Iterator[tuple[str, bool]]) -> Iterator[_Glyph]:
    for text, is_trained in pieces:
        for character in text:
            if character == "\n":
                yield _Glyph(_NEWLINE, is_trained, ends_line=True)
            elif unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp", "Cs", "Co") and character != "\u200d":
                yield _Glyph(character.encode("unicode_escape").decode("ascii"), is_trained, ends_line=False)
            else:
                yield _Glyph(character, is_trained, ends_line=False)


def _wrapped(glyphs: Sequence[_Glyph], *, width: int) -> Iterator[list[_Glyph]]:
    row: list[_Glyph] = []
    used = 0
    for glyph in glyphs:
        columns = sum(_columns(character) for character in glyph.text)
        if row and used + columns > width:
            yield row
            row, used = [], 0
        row.append(glyph)
        used += columns
        if glyph.ends_line:
            yield row
            row, used = [], 0
    if row:
        yield row


def _columns(character: str) -> int:
    """Columns of a character in a terminal."""
    if unicodedata.category(character) in ("Mn", "Me") or character == "\u200d":
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _coloured(rows: Sequence[Sequence[_Glyph]]) -> Iterator[str]:
    for row in rows:
        line = ""
        for is_trained, run in groupby(row, key=lambda glyph: glyph.is_trained):
            text = "".join(glyph.text for glyph in run)
            line += f"{_BOLD_GREEN}{text}{_PLAIN}" if is_trained else text
        yield line


def _marked(rows: Sequence[Sequence[_Glyph]]) -> Iterator[str]:
    """Lines with a mark where training begins and where it ends, each once however many lines lie between."""
    is_open = False
    for number, row in enumerate(rows, start=1):
        line = ""
        for glyph in row:
            if glyph.is_trained != is_open:
                line += _OPEN if glyph.is_trained else _CLOSE
                is_open = glyph.is_trained
            line += glyph.text
        is_last = number == len(rows)
        yield line + (_CLOSE if is_open and is_last else "")
