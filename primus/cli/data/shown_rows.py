# SPDX-License-Identifier: Apache-2.0
"""A row in the terminal: a line about each turn, and below it the turn's text or its tokens."""

import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby

from primus.cli.preview import abbreviated
from primus.cli.token_lines import Kind, Piece, columns, painted, token_lines, visible
from primus.sft.views import ConversationView, RowProblem, SectionView, TokenView

_LINES_OF_END = 4
_TURNS_OF_END = 15
_BOLD, _RESET = "\x1b[1m", "\x1b[0m"


def legend_lines(rows: Sequence[ConversationView | RowProblem], *, in_colour: bool, width: int) -> list[str]:
    """What the marks or colours in some rows mean.

    Args:
        rows: The rows.
        in_colour: Whether colours are used.
        width: Columns.

    Returns:
        Lines.
    """
    views = [row for row in rows if isinstance(row, ConversationView)]
    kinds = {kind for view in views for kind in view.kinds}
    items = [Piece("trained", 1.0)]
    if any(weight != 1 for view in views for section in view.sections for weight in section.weights):
        items.append(Piece("other weight", 0.5))
    if "control" in kinds:
        items.append(Piece("control token", kind="control"))
    if any(token.lost for view in views for token in view.tokens()) or any(view.lost_at_end for view in views):
        items.append(Piece("without a token", kind="lost"))
    items.append(Piece("space \u00b7 newline \u21b5"))
    pieces = [piece for item in items for piece in (item, Piece("  "))]
    return [line.text.rstrip() for line in token_lines(pieces[:-1], in_colour=in_colour, width=width)]


def row_lines(
    row: ConversationView | RowProblem,
    *,
    in_colour: bool,
    width: int,
    is_whole: bool = False,
    shows_ids: bool = False,
    max_seq_length: int | None = None,
) -> list[str]:
    """Print a row.

    Args:
        row: The row.
        in_colour: Use colours; otherwise marks.
        width: Columns.
        is_whole: Print all of it; otherwise the middle of long turns, and of rows of many turns, is counted.
        shows_ids: Print a line for each token.
        max_seq_length: Positions of a training sequence, if there is such a limit.

    Returns:
        Lines.
    """
    if isinstance(row, RowProblem):
        return [*_title(visible(row.origin, shows_spaces=False), in_colour=in_colour),
                *_wrapped(visible(row.message, shows_spaces=False), width=width)]  # fmt: skip
    turns = {section.turn for section in row.sections} - {None}
    share = f"{row.num_trained / row.num_tokens:.0%}" if row.num_tokens else "0%"
    facts = f"{_count(row.num_tokens, 'token')}, {row.num_trained:,} trained ({share}), {_count(len(turns), 'turn')}"
    lines = [*_title(visible(row.origin, shows_spaces=False), in_colour=in_colour), *_wrapped(facts, width=width)]
    for note in row.notes:
        lines += _wrapped(note, width=width)
    tokens = list(row.tokens())
    blocks = [
        _section_lines(
            row, section, tokens[section.first : section.last], in_colour=in_colour, width=width, is_whole=is_whole,
            shows_ids=shows_ids, max_seq_length=max_seq_length,
        )
        for section in row.sections
    ]  # fmt: skip
    if not is_whole and len(blocks) > 2 * _TURNS_OF_END + 1:
        hidden = row.sections[_TURNS_OF_END:-_TURNS_OF_END]
        num_tokens = sum(section.last - section.first for section in hidden)
        num_trained = sum(section.num_trained for section in hidden)
        rest = f"... {len(hidden):,} more turns of {num_tokens:,} tokens, {num_trained:,} trained; --full prints them"
        blocks[_TURNS_OF_END:-_TURNS_OF_END] = [[rest]]
    lines += [line for block in blocks for line in block]
    if row.lost_at_end:
        lines += _text_lines([Piece(row.lost_at_end, kind="lost")], in_colour=in_colour, width=width)
    return lines


def _section_lines(
    row: ConversationView,
    section: SectionView,
    tokens: Sequence[TokenView],
    *,
    in_colour: bool,
    width: int,
    is_whole: bool,
    shows_ids: bool,
    max_seq_length: int | None,
) -> list[str]:
    lines = _header(section, in_colour=in_colour, width=width)
    for is_cut in (False, True):
        part = [token for token in tokens if token.is_cut == is_cut]
        if is_cut and part and part[0].index == row.cut:
            rest = _count(row.num_tokens - row.cut, "token")
            lines.append(f"--- what fits seq_length {max_seq_length:,} ends here; the rest is cut off ({rest})")
        if shows_ids:
            body = list(_token_table(part, in_colour=in_colour, width=width))
        else:
            body = _text_lines(_pieces(part), in_colour=in_colour, width=width)
        lines += body if is_whole else abbreviated(body, ends=_LINES_OF_END, what="lines; --full prints them")
    return lines


def _header(section: SectionView, *, in_colour: bool, width: int) -> list[str]:
    name = section.role if section.turn is None else f"turn {section.turn} {section.role}"
    facts = [_count(section.last - section.first, "token")]
    if section.num_trained:
        facts += [f"{section.num_trained:,} trained", f"weight {', '.join(f'{w:g}' for w in section.weights)}"]
    else:
        facts.append("context")
    text = f"{name}: {', '.join(facts)}{''.join(f'; {note}' for note in section.notes)}"
    lines = textwrap.wrap(text, width, subsequent_indent="    ", break_on_hyphens=False)
    if in_colour:
        lines[0] = lines[0].replace(f"{name}:", f"{_BOLD}{name}:{_RESET}", 1)
    return lines


def _pieces(tokens: Sequence[TokenView]) -> Iterator[Piece]:
    for token in tokens:
        if token.lost:
            yield Piece(token.lost, kind="lost")
        text = token.own_text if token.end > token.start else token.text
        yield Piece(text, token.weight, _kind(token))


def _kind(token: TokenView) -> Kind:
    return "cut" if token.is_cut and token.kind == "text" else token.kind


def _text_lines(pieces: Iterator[Piece] | Sequence[Piece], *, in_colour: bool, width: int) -> list[str]:
    merged = [
        Piece("".join(piece.text for piece in run), weight, kind)
        for (weight, kind), run in groupby(pieces, key=lambda piece: (piece.weight, piece.kind))
    ]
    lines = token_lines(merged, in_colour=in_colour, width=width - 2, shows_spaces=True)
    return [f"  {line.text}" for line in lines]


def _token_table(tokens: Sequence[TokenView], *, in_colour: bool, width: int) -> Iterator[str]:
    if tokens:
        yield f"  {'token':>6} {'id':>7} {'characters':>13} {'weight':>6}  text"
    for token in tokens:
        place = f"{token.start}-{token.end}" if token.end > token.start else "none"
        weight = f"{token.weight:g}" if token.weight else "-"
        front = f"  {token.index:>6} {token.id:>7} {place:>13} {weight:>6}  "
        piece = Piece(token.text, token.weight, _kind(token))
        text = _shortened(visible(token.text), width=max(width - len(front) - 20, 12))
        if in_colour:
            text = painted(text, piece)
        elif token.weight:
            text = f"\u27e6{text}\u27e7"
        notes = [f"lost in front: {visible(token.lost)}"] if token.lost else []
        if token.bytes is not None:
            notes.append(f"bytes {token.bytes.hex(' ').upper()}")
        if token.kind != "text":
            notes.append({"control": "control", "marker": "marker", "unknown": "unknown"}[token.kind])
        yield f"{front}{text}{''.join(f'  {note}' for note in notes)}"


def _shortened(text: str, *, width: int) -> str:
    if columns(text) <= width:
        return text
    while columns(text) > width - 1:
        text = text[:-1]
    return f"{text}\u2026"


def _title(text: str, *, in_colour: bool) -> list[str]:
    return [f"{_BOLD}{text}{_RESET}" if in_colour else text]


def _wrapped(text: str, *, width: int) -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent="  ", subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
