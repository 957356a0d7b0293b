# SPDX-License-Identifier: Apache-2.0
"""The bytes of tokens that share a character: the parts of an emoji, or of a rare Chinese character.

A tokenizer here says which characters a token stands for; tokens that hold a part of a character's bytes all stand for
that character. How many of its bytes each holds shows when it is decoded alone: every byte that goes on with a
character comes out as one U+FFFD.

T: tokens of a conversation.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from primus.sft.masking import IntArray

_REPLACEMENT = "\ufffd"


def token_bytes(
    text: str, ids_T: IntArray, offsets_T2: IntArray, *, decode: Callable[[Sequence[int]], str]
) -> dict[int, bytes]:
    r"""The bytes of every token that holds only a part of some character.

    Args:
        text: The text.
        ids_T: Token ids.
        offsets_T2: Characters `[start, end)` of each token.
        decode: Gives the text of ids.

    Returns:
        The bytes by token. A token whose part can't be told is left out.

    Examples:
        The two halves of an accented e, the first one behind a letter:

        >>> parts = {7: "a\ufffd", 8: "\ufffd"}
        >>> token_bytes("a\u00e9", np.array([7, 8]), np.array([[0, 2], [1, 2]]), decode=lambda ids: parts[ids[0]])
        {0: b'a\xc3', 1: b'\xa9'}
    """
    starts_T, ends_T = offsets_T2[:, 0].tolist(), offsets_T2[:, 1].tolist()
    parts: dict[int, dict[int, bytes | None]] = {}
    shared = np.flatnonzero(offsets_T2[1:, 0] < offsets_T2[:-1, 1]) + 1
    done = 0
    for t in shared.tolist():
        if t < done:
            continue
        place = ends_T[t - 1] - 1
        last = t
        while last + 1 < len(starts_T) and starts_T[last + 1] == place and ends_T[last] == place + 1:
            last += 1
        done = last + 1
        pieces = _split(text, place, range(t - 1, last + 1), starts_T, ends_T, ids_T, decode)
        for token, piece in zip(range(t - 1, last + 1), pieces, strict=True):
            parts.setdefault(token, {})[place] = piece
    found = {}
    for token, by_place in parts.items():
        pieces = [by_place.get(c, text[c].encode()) for c in range(starts_T[token], ends_T[token])]
        if None not in pieces:
            found[token] = b"".join(piece for piece in pieces if piece is not None)
    return found


def _split(
    text: str,
    place: int,
    tokens: range,
    starts_T: Sequence[int],
    ends_T: Sequence[int],
    ids_T: IntArray,
    decode: Callable[[Sequence[int]], str],
) -> list[bytes | None]:
    """The bytes of one character that each of the tokens holds which share it; None where it can't be told."""
    data = text[place].encode()
    lengths: list[int | None] = []
    for token in tokens[1:]:
        plain = decode([int(ids_T[token])])
        rest = plain.lstrip(_REPLACEMENT)
        goes_on = text[place + 1 : ends_T[token]]
        if starts_T[token] != place or (bool(rest) != bool(goes_on)) or not goes_on.startswith(rest[:1]):
            lengths.append(None)
        else:
            lengths.append(len(plain) - len(rest))
    known = [length for length in lengths if length]
    if len(data) == len(tokens):
        known = [1] * (len(tokens) - 1)
    if len(known) < len(lengths) or sum(known) >= len(data):
        return [None] * len(tokens)
    bounds = np.cumsum([0, len(data) - sum(known), *known]).tolist()
    return [data[a:b] for a, b in pairwise(bounds)]
