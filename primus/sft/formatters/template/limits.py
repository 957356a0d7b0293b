# SPDX-License-Identifier: Apache-2.0
"""Limits on the texts that a chat template makes, which comes with a model from somewhere."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from jinja2.filters import do_center, do_format

MAX_CHARS = 1 << 25
"""Characters of a text that a template puts together."""


def limited(text: str) -> str:
    """The text, unless it is longer than a template may make it."""
    if len(text) > MAX_CHARS:
        raise OverflowError(f"a text of {len(text)} characters is above {MAX_CHARS}")
    return text


def within_limit(pieces: Iterable[str]) -> Iterator[str]:
    """The pieces of a text, unless they are more together than a template may make."""
    length = 0
    for piece in pieces:
        length += len(piece)
        if length > MAX_CHARS:
            raise OverflowError(f"a text of more than {MAX_CHARS} characters")
        yield piece


def check_method(method: Any, arguments: Sequence[Any]) -> None:
    """Refuse a call of a text's method that makes a far longer text.

    Args:
        method: What is called.
        arguments: What it is given by place.

    Raises:
        OverflowError: If the text would be longer than a template may make it.
    """
    text, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
    if not isinstance(text, str):
        return
    size = 0
    if name in {"ljust", "rjust", "center", "zfill", "expandtabs"} and arguments and isinstance(arguments[0], int):
        size = arguments[0] * (1 + text.count("\t") if name == "expandtabs" else 1)
    if name == "replace" and len(arguments) > 1 and all(isinstance(word, str) for word in arguments[:2]):
        size = text.count(arguments[0]) * len(arguments[1])
    if name == "join" and arguments and isinstance(arguments[0], list | tuple):
        size = len(text) * len(arguments[0])
    if size > MAX_CHARS:
        raise OverflowError(f"a text of {size} characters is above {MAX_CHARS}")
    if name in {"format", "format_map"} and not is_modest_format(text):
        raise OverflowError("a format with a width above 3 digits")


def format_modestly(value: str, *args: Any, **kwargs: Any) -> str:
    """The filter `format`, with widths of at most three digits."""
    if not is_modest_format(str(value)):
        raise OverflowError("a format with a width above 3 digits")
    return do_format(value, *args, **kwargs)


def center_modestly(value: str, width: int = 80) -> str:
    """The filter `center`, of a modest width."""
    check_method("".center, [width])
    return do_center(value, width)


def is_modest_format(text: str) -> bool:
    """Whether a format has no width of more than three digits, and none that is given beside it."""
    return "*" not in text and not any(len(digits) > len("999") for digits in _digit_groups(text))


def _digit_groups(text: str) -> list[str]:
    return "".join(character if character.isdigit() else " " for character in text).split()
