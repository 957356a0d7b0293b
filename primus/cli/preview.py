# SPDX-License-Identifier: Apache-2.0
"""A training sequence as a person can check it, from the arrays that the trainer reads: what of its text is trained.

Legend: S positions of the sequence, T its tokens.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Protocol

from primus.cli.token_lines import Line, Piece, token_lines

_LINES_OF_END = 4
_MOST_LINES = 100


class Decoder(Protocol):
    """What turns token ids into text."""

    def decode(self, ids: Sequence[int], /) -> str:
        """The text of ids, control tokens included."""
        ...


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
        in_colour: Print what is trained on green; otherwise it stands between U+27E6 and U+27E7.
        width: Columns.

    Returns:
        Lines. A newline of the text is shown by an arrow where a line ends, other control characters by their code. Of
        a stretch of many lines that are all trained, or all not, the first and the last few are shown, and of all
        lines the first hundred; what is left out is counted.
    """
    tokens_T = [input_ids_S[0], *labels_S[:num_positions]]
    weights_T = [0.0, *loss_mask_S[:num_positions]]
    lines = token_lines(_pieces(tokens_T, weights_T, tokenizer=tokenizer), in_colour=in_colour, width=width - 2)
    shown: list[str] = []
    for _, stretch in groupby(lines, key=_what):
        shown += abbreviated([f"  {line.text}" for line in stretch], ends=_LINES_OF_END)
    hidden = shown[_MOST_LINES:]
    return shown[:_MOST_LINES] + ([f"  ... {len(hidden):,} more lines"] if hidden else [])


def abbreviated(lines: Sequence[str], *, ends: int, what: str = "lines of the same kind") -> list[str]:
    """Lines without their middle, if they are many.

    Args:
        lines: The lines.
        ends: How many are shown at each end.
        what: Names the lines that are left out.

    Returns:
        All of up to three times as many lines; of more, the ends, and between them a line that counts the rest.
    """
    if len(lines) <= 3 * ends:
        return list(lines)
    middle = lines[ends:-ends]
    return [*lines[:ends], f"  ... {len(middle):,} {what}", *lines[-ends:]]


def _what(line: Line) -> tuple[bool, bool]:
    return line.has_trained, line.has_context


def _pieces(tokens_T: Sequence[int], weights_T: Sequence[float], *, tokenizer: Decoder) -> Iterator[Piece]:
    """The text of each run of tokens of one weight.

    Decoded as what the whole text gains by the run: by itself, a run may lose a space at its beginning.
    """
    end, so_far = 0, ""
    for weight, run in groupby(weights_T):
        start, end = end, end + len(list(run))
        text = tokenizer.decode(tokens_T[:end])
        piece = text[len(so_far) :] if text.startswith(so_far) else tokenizer.decode(tokens_T[start:end])
        yield Piece(piece, weight)
        so_far = text
