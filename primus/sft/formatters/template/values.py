# SPDX-License-Identifier: Apache-2.0
"""Values that a template prints as JSON or as Python does, with the runs of the strings in them."""

import json
import re
from collections.abc import Callable, Iterator
from json.encoder import encode_basestring, encode_basestring_ascii
from typing import Any

from primus.sft.formatters.template.origin import WHOLE, Run, Tracked, cut, joined, plain, runs_of

_ESCAPED = re.compile(r'[\x00-\x1f\\"]')
_ESCAPED_ASCII = re.compile(r'[\\"]|[^\ -~]')


def tracked_json(
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002 - templates may pass it by place
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    """The filter `tojson`: the text of `json.dumps` with the same options, with runs."""
    step = " " * indent if isinstance(indent, int) else indent
    item, key = separators or (", " if indent is None else ",", ": ")
    return joined(_JsonWriter(step=step, item=item, key=key, ascii_only=ensure_ascii, sort=sort_keys).pieces(value, 0))


class _JsonWriter:
    def __init__(self, *, step: str | None, item: str, key: str, ascii_only: bool, sort: bool) -> None:
        self._step = step
        self._item = item
        self._key = key
        self._sort = sort
        self._quote = encode_basestring_ascii if ascii_only else encode_basestring
        self._escaped = _ESCAPED_ASCII if ascii_only else _ESCAPED

    def pieces(self, value: Any, depth: int) -> Iterator[str]:
        if isinstance(value, str):
            yield self._string(value)
        elif isinstance(value, dict):
            items = sorted(value.items()) if self._sort else value.items()
            yield from self._container("{}", [(self._key_text(key), item) for key, item in items], depth)
        elif isinstance(value, list | tuple):
            yield from self._container("[]", [("", item) for item in value], depth)
        else:
            yield json.dumps(value)

    def _container(self, braces: str, items: list[tuple[str, Any]], depth: int) -> Iterator[str]:
        if not items:
            yield braces
            return
        newline = "" if self._step is None else "\n" + self._step * (depth + 1)
        yield braces[0]
        for number, (key, item) in enumerate(items):
            yield self._item + newline if number else newline
            yield key
            yield from self.pieces(item, depth + 1)
        yield ("" if self._step is None else "\n" + self._step * depth) + braces[1]

    def _key_text(self, key: Any) -> str:
        if isinstance(key, str):
            return joined((self._string(key), self._key))
        if key is None or isinstance(key, bool | int | float):
            return f'"{json.dumps(key)}"{self._key}'
        raise TypeError(f"keys must be str, int, float, bool or None, not {type(key).__name__}")

    def _string(self, text: str) -> str:
        if type(text) is not Tracked:
            return self._quote(text)
        return joined(('"', escaped(text, self._escaped, lambda one: self._quote(one)[1:-1]), '"'))


def escaped(text: Tracked, pattern: re.Pattern[str], escape: Callable[[str], str]) -> str:
    """A string with some characters replaced; each replacement stands for its character as a whole.

    Args:
        text: The string.
        pattern: Finds the characters, one at a time.
        escape: Gives the replacement of a character.

    Returns:
        The string with runs.
    """
    pieces: list[str] = []
    done = 0
    for match in pattern.finditer(plain(text)):
        at = match.start()
        if at > done:
            pieces.append(cut(text, done, at))
        written = escape(match.group())
        runs = runs_of(cut(text, at, at + 1))
        pieces.append(Tracked(written, [Run(0, len(written), r.source, r.first, r.last, WHOLE) for r in runs]))
        done = at + 1
    return joined([*pieces, cut(text, done, len(text))]) if pieces else text


def tracked_text(value: Any) -> str:
    """`str(value)`, with the runs of the strings in a list, tuple or dictionary."""
    return tracked_repr(value) if type(value) in (list, tuple, dict) else str(value)


def tracked_repr(value: Any) -> str:
    """`repr(value)`, with runs."""
    if type(value) is Tracked:
        return _quoted(value)
    if type(value) is dict:
        pairs = [joined((tracked_repr(key), ": ", tracked_repr(item))) for key, item in value.items()]
        return joined(("{", *_listed(pairs), "}"))
    if type(value) is list:
        return joined(("[", *_listed([tracked_repr(item) for item in value]), "]"))
    if type(value) is tuple:
        end = ",)" if len(value) == 1 else ")"
        return joined(("(", *_listed([tracked_repr(item) for item in value]), end))
    return repr(value)


def _listed(items: list[str]) -> list[str]:
    return [piece for number, item in enumerate(items) for piece in ((", ", item) if number else (item,))]


def _quoted(text: Tracked) -> str:
    """Python's text of a string: in double quotes if it has single ones only."""
    characters = plain(text)
    quote = '"' if "'" in characters and '"' not in characters else "'"

    def escape(one: str) -> str:
        return "\\" + one if one in ("\\", quote) else repr(one)[1:-1]

    special = {one for one in set(characters) if escape(one) != one}
    if not special:
        return joined((quote, text, quote))
    pattern = re.compile("[" + "".join(map(re.escape, sorted(special))) + "]")
    return joined((quote, escaped(text, pattern, escape), quote))
