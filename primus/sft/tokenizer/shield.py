# SPDX-License-Identifier: Apache-2.0
"""Twins of a `tokenizer.json` that see control tokens only where they are meant.

The twin has the same vocabulary, merges, normalizer and ids, but each control token is spelled with private-use
characters, as many as its own text has. Text is respelled at the places where a control token is meant: the twin finds
the control tokens there and nowhere else, and offsets need no correction.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from primus.errors import ConversationError
from primus.sft.tokenizer.base import Control

# Alphabets of private-use characters, so that a text which happens to use characters of one is respelled in another.
_AREA_SIZE = 0x2000
PRIVATE_AREAS = tuple(
    (start, re.compile(f"[{chr(start)}-{chr(start + _AREA_SIZE - 1)}]"))
    for plane in (0x100000, 0xF0000)
    for start in range(plane, plane + 7 * _AREA_SIZE, _AREA_SIZE)
)


def free_area(text: str, *, name: str) -> int:
    """The first alphabet of which a text uses no character.

    Args:
        text: The text.
        name: The tokenizer's name, for the message.

    Returns:
        The first character of the alphabet.

    Raises:
        ConversationError: If the text uses characters of all of them.
    """
    for area, characters in PRIVATE_AREAS:
        if not characters.search(text):
            return area
    raise ConversationError(
        f"{name}: the text spells control tokens out and uses private-use characters all over planes 15 and 16, so"
        " the two"
        " can't be told apart; remove the private-use characters",
        reason="private_use",
    )


def private_spelling(index: int, length: int, *, area: int) -> str:
    """The private text of a control token.

    Args:
        index: Number of the control token.
        length: Characters of its own text.
        area: First character of the alphabet.

    Returns:
        As many characters; different for different tokens.

    Examples:
        >>> [hex(ord(character)) for character in private_spelling(3, 2, area=0x100000)]
        ['0x100003', '0x100003']
    """
    assert index < _AREA_SIZE, "more control tokens than private characters"
    return chr(area + index) * length


def respell(text: str, controls: Sequence[Control], spelling: Mapping[int, str]) -> str:
    """The text with the private spelling at each control token's place; equally long."""
    parts, done = [], 0
    for control in controls:
        parts += [text[done : control.start], spelling[control.id]]
        done = control.end
    return "".join([*parts, text[done:]])


def plain_pipeline(tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    """A `tokenizer.json` without post-processing, truncation and padding."""
    return {**tokenizer, "post_processor": None, "truncation": None, "padding": None}


def shielded(tokenizer: Mapping[str, Any], spelling: Mapping[str, str], *, before_normalizer: bool) -> dict[str, Any]:
    """The twin of a `tokenizer.json`.

    Args:
        tokenizer: The decoded file.
        spelling: The private text of each control token's text.
        before_normalizer: Whether control tokens are found before the text is normalized, also those that the file
            wants found in normalized text: for a normalizer that removes private-use characters.

    Returns:
        The decoded file of the twin.
    """
    model = dict(tokenizer["model"])
    vocab = model.get("vocab")
    if isinstance(vocab, Mapping):
        model["vocab"] = {spelling.get(token, token): token_id for token, token_id in vocab.items()}
    elif isinstance(vocab, list):  # Unigram: [token, score], the id is the index
        model["vocab"] = [[spelling.get(token, token), score] for token, score in vocab]
    if model.get("unk_token") in spelling:
        model["unk_token"] = spelling[model["unk_token"]]
    if model.get("merges"):
        # A merge that makes a control token out of plain text, or goes on from one, has no place in the twin.
        pairs = (merge if isinstance(merge, list) else merge.split(" ", 1) for merge in model["merges"])
        model["merges"] = [
            [left, right] for left, right in pairs if spelling.keys().isdisjoint({left, right, left + right})
        ]
    early = {"normalized": False} if before_normalizer else {}
    added = [
        {**token, "content": spelling[token["content"]], **early} if token["content"] in spelling else token
        for token in tokenizer["added_tokens"]
    ]
    return {**tokenizer, "model": model, "added_tokens": added}


def continuing(tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    """A `tokenizer.json` that puts no prefix space before a text, because the text goes on from another."""
    return {
        **tokenizer,
        "normalizer": _without_prepend(tokenizer.get("normalizer")),
        "pre_tokenizer": _without_prefix_space(tokenizer.get("pre_tokenizer")),
    }


def _without_prepend(normalizer: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if normalizer is None or normalizer["type"] == "Prepend":
        return None
    if normalizer["type"] == "Sequence":
        kept = [part for part in map(_without_prepend, normalizer["normalizers"]) if part is not None]
        return {**normalizer, "normalizers": kept}
    return dict(normalizer)


def _without_prefix_space(pre_tokenizer: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if pre_tokenizer is None:
        return None
    kind = pre_tokenizer["type"]
    if kind == "Sequence":
        parts = pre_tokenizer["pretokenizers"]
        if any(part["type"] in {"WhitespaceSplit", "Whitespace"} for part in parts):
            # Here the prefix marks each word, whose space has been dropped, and not the beginning of the text.
            return dict(pre_tokenizer)
        return {**pre_tokenizer, "pretokenizers": [_without_prefix_space(part) for part in parts]}
    if kind == "Metaspace":
        older = {"add_prefix_space": False} if "add_prefix_space" in pre_tokenizer else {}
        return {**pre_tokenizer, "prepend_scheme": "never", **older}
    if kind == "ByteLevel":
        return {**pre_tokenizer, "add_prefix_space": False}
    return dict(pre_tokenizer)
