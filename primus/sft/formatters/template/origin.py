# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: D102, PYI034, SLF001 - the methods are those of `str`; what a template could see has to be private
"""Strings that remember where their characters came from while a template cuts, joins and strips them.

A run is a stretch of a string and the stretch of a source that it was copied from. What a template does with a string
in a way that is not followed here loses runs; it never makes wrong ones, and lost ones are noticed by comparing.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, SupportsIndex

EXACT = 0
"""The run is a copy of the source, character by character."""
RECASED = 1
"""As many characters as in the source, with upper and lower case changed."""
WHOLE = 2
"""The run stands for the stretch of the source as a whole: an escape such as `\\n` in JSON."""


class Run(NamedTuple):
    """Characters `[start, end)` of a string, and the characters `[first, last)` of the source they came from.

    Attributes:
        start: First character in the string.
        end: One past the last; equal to `start` for what is left of an empty string.
        source: Index of the source.
        first: First character in the source.
        last: One past the last.
        kind: `EXACT`, `RECASED` or `WHOLE`.
    """

    start: int
    end: int
    source: int
    first: int
    last: int
    kind: int


class Tracked(str):
    """A string with runs.

    It adds no public name to those of `str`, since a template can ask for any, and behaves like one in every respect.

    Args:
        text: The characters.
        runs: The runs, in order.
    """

    __slots__ = ("_runs",)
    _runs: list[Run]

    def __new__(cls, text: str, runs: list[Run] | None = None) -> "Tracked":
        self = str.__new__(cls, text)
        self._runs = runs or []
        return self

    def __str__(self) -> "Tracked":
        return self

    def __add__(self, other: object) -> Any:
        return joined((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: object) -> Any:
        return joined((other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, times: SupportsIndex) -> str:
        return joined((self,) * times.__index__())

    __rmul__ = __mul__

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        text = plain(self)
        if not isinstance(key, slice):
            at = key.__index__() if hasattr(key, "__index__") else None
            one = text[key]  # raises what a string raises
            assert at is not None
            start = at if at >= 0 else at + len(text)
            return cut(self, start, start + len(one))
        start, end, step = key.indices(len(text))
        if step == 1:
            return cut(self, start, max(start, end))
        return joined([cut(self, at, at + 1) for at in range(start, end, step)])

    def __iter__(self) -> Iterator[str]:
        return (cut(self, at, at + 1) for at in range(len(self)))

    def strip(self, chars: str | None = None) -> str:
        return self._between(plain(self).lstrip(chars), plain(self).rstrip(chars))

    def lstrip(self, chars: str | None = None) -> str:
        return self._between(plain(self).lstrip(chars), self)

    def rstrip(self, chars: str | None = None) -> str:
        return self._between(self, plain(self).rstrip(chars))

    def removeprefix(self, prefix: str, /) -> str:
        return self._between(plain(self).removeprefix(prefix), self)

    def removesuffix(self, suffix: str, /) -> str:
        return self._between(self, plain(self).removesuffix(suffix))

    def _between(self, without_front: str, without_back: str) -> str:
        start = len(self) - len(without_front)
        return cut(self, start, max(start, len(without_back)))

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._pieces(plain(self).split(sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._pieces(plain(self).rsplit(sep, maxsplit), sep)

    def _pieces(self, pieces: list[str], sep: str | None) -> list[str]:
        result, at = [], 0
        for piece in pieces:
            if sep is None:  # between the pieces is whitespace of any length
                at = plain(self).index(piece, at)
            result.append(cut(self, at, at + len(piece)))
            at += len(piece) + len(sep or "")
        return result

    def splitlines(self, keepends: bool = False) -> list[str]:  # noqa: FBT001, FBT002
        result, at = [], 0
        text = plain(self)
        for line, whole in zip(text.splitlines(keepends), text.splitlines(keepends=True), strict=True):
            result.append(cut(self, at, at + len(line)))
            at += len(whole)
        return result

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        return self._three(plain(self).partition(sep))

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        return self._three(plain(self).rpartition(sep))

    def _three(self, parts: tuple[str, str, str]) -> tuple[str, str, str]:
        first, second = len(parts[0]), len(parts[0]) + len(parts[1])
        return cut(self, 0, first), cut(self, first, second), cut(self, second, len(self))

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        if not old:
            return plain(self).replace(old, new, count)
        pieces = self.split(old, count)
        return joined([part for piece in pieces for part in (new, piece)][1:])

    def join(self, items: Iterable[str], /) -> str:
        return joined_by(self, items)

    def upper(self) -> str:
        return self._recased(plain(self).upper())

    def lower(self) -> str:
        return self._recased(plain(self).lower())

    def casefold(self) -> str:
        return self._recased(plain(self).casefold())

    def capitalize(self) -> str:
        return self._recased(plain(self).capitalize())

    def swapcase(self) -> str:
        return self._recased(plain(self).swapcase())

    def title(self) -> str:
        return self._recased(plain(self).title())

    def _recased(self, text: str) -> str:
        if len(text) != len(self):
            return text
        return Tracked(text, [run._replace(kind=max(run.kind, RECASED)) for run in self._runs])


def plain(text: str) -> str:
    """The characters alone."""
    return str.__add__("", text)


def cut(text: Tracked, start: int, end: int) -> str:
    """The characters `[start, end)` with their runs; a cut that leaves nothing keeps one empty run, as a trace."""
    part = plain(text)[start:end]
    if not part:
        touched = next((run for run in text._runs if run.start <= start <= run.end), None)
        return Tracked("", [_empty(touched, start)]) if touched else part
    runs = []
    for run in text._runs:
        s, e, source, first, last, kind = run
        if s >= start and e <= end:
            runs.append(Run(s - start, e - start, source, first, last, kind))
        elif s < end and e > start:
            a, b = max(s, start), min(e, end)
            if kind != WHOLE:
                first, last = first + a - s, first + b - s
            runs.append(Run(a - start, b - start, source, first, last, kind))
    return Tracked(part, runs) if runs else part


def _empty(run: Run, at: int) -> Run:
    first = run.first if run.kind == WHOLE else run.first + at - run.start
    return Run(0, 0, run.source, first, first, EXACT)


def joined(pieces: Iterable[Any], as_text: Callable[[Any], str] = str) -> str:
    """The pieces as one string, with the runs of all of them.

    Args:
        pieces: Strings, or anything that has a text.
        as_text: Gives the text of a piece.

    Returns:
        A string with runs if any piece had some.
    """
    parts: list[str] = []
    runs: list[Run] = []
    length = 0
    for piece in pieces:
        part = piece if isinstance(piece, str) else as_text(piece)
        if type(part) is Tracked:
            runs += [
                Run(s + length, e + length, source, first, last, kind) for s, e, source, first, last, kind in part._runs
            ]
        parts.append(part)
        length += len(part)
    text = "".join(parts)
    return Tracked(text, runs) if runs else text


def joined_by(separator: str, items: Iterable[str]) -> str:
    """`separator.join(items)`, with the runs."""
    pieces: list[str] = []
    for number, item in enumerate(items):
        if not isinstance(item, str):
            raise TypeError(f"sequence item {number}: expected str instance, {type(item).__name__} found")
        pieces += (separator, item) if number else (item,)
    return joined(pieces)


def runs_of(text: str) -> Sequence[Run]:
    """The runs of a string; none for an ordinary one."""
    return text._runs if type(text) is Tracked else ()
