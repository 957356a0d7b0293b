# SPDX-License-Identifier: Apache-2.0
"""Bars and axes as SVG that takes its colours from the page, so that light and dark are the page's business.

Coordinates are those of a view of `WIDTH` columns, which the page scales to the width that it has.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 26, 40
_BAR_HEIGHT, _BAR_GAP = 15, 9


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps a number to a coordinate."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        """The coordinate of a number."""
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        share = (value - low) / (high - low) if high > low else 0.5
        return round(self.start + share * (self.end - self.start), 1)


class Drawing:
    """Collects the elements of one SVG image; all text is escaped.

    Args:
        label: What the image shows, for who can't see it.
        height: Its height, in columns of the view.
        is_strip: Whether it has one height however wide it is; then it holds no text.
    """

    def __init__(self, label: str, *, height: float = HEIGHT, is_strip: bool = False) -> None:
        self._label = label
        self._height = height
        self._strip = Markup(' class="strip" preserveAspectRatio="none"') if is_strip else Markup("")
        self._parts: list[Markup] = []

    def text(self, x: float, y: float, text: str, *, kind: str = "tick", anchor: str = "middle") -> None:
        """Write text."""
        self._parts.append(
            Markup('<text x="{}" y="{}" class="{}" text-anchor="{}">{}</text>').format(x, y, kind, anchor, text)
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, *, kind: str = "grid") -> None:
        """Draw a straight line."""
        self._parts.append(Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>').format(x1, y1, x2, y2, kind))

    def rect(self, x: float, y: float, width: float, height: float, *, kind: str, title: str) -> None:
        """Draw a bar that says what it is when pointed at."""
        self._parts.append(
            Markup(
                '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" class="{}"><title>{}</title></rect>'
            ).format(x, y, max(width, 0), max(height, 0), kind, title)
        )

    def path(self, points: Iterable[tuple[float, float]], *, kind: str) -> None:
        """Draw a line through points."""
        d = "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        self._parts.append(Markup('<path d="{}" class="{}"/>').format(d, kind))

    def svg(self) -> Markup:
        """The whole image."""
        return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}"{}>{}</svg>').format(
            WIDTH, self._height, self._label, self._strip, Markup("").join(self._parts)
        )


def short(number: float) -> str:
    """A number in few characters, for an axis.

    Args:
        number: At least 0.

    Returns:
        Three digits or so, with k, M or G.

    Examples:
        >>> [short(n) for n in (0, 950, 1024, 16384, 2_500_000)]
        ['0', '950', '1k', '16k', '2.5M']
    """
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            scaled = number / size
            return f"{scaled:.0f}{unit}" if scaled >= 10 or round(scaled, 1) % 1 == 0 else f"{scaled:.1f}{unit}"
    return f"{number:g}"


def power(number: int) -> str:
    """A length as people say it: multiples of 1024 in k.

    Args:
        number: A length.

    Returns:
        The words.

    Examples:
        >>> power(512), power(4096), power(3000)
        ('512', '4k', '3000')
    """
    return f"{number // 1024}k" if number % 1024 == 0 and number else str(number)


def count_axis(drawing: Drawing, most: float, *, form: Callable[[float], str] = short) -> Scale:
    """An axis of counts from 0, with a grid."""
    step = 10 ** math.floor(math.log10(most)) if most >= 1 else 1
    step = next((step * f for f in (0.2, 0.5, 1, 2) if most / (step * f) <= 4), step * 2)
    step = max(step, 1)
    scale = Scale(0, max(most, 1), HEIGHT - BOTTOM, TOP)
    value = 0.0
    while value <= max(most, 1):
        drawing.line(LEFT, scale(value), WIDTH - RIGHT, scale(value))
        drawing.text(LEFT - 6, scale(value) + 4, form(value), anchor="end")
        value += step
    return scale


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a horizontal bar.

    Attributes:
        share: Its length, as a share of the whole width.
        kind: Its class in the page's styles.
        title: What it is.
    """

    share: float
    kind: str
    title: str


@dataclass(frozen=True, slots=True)
class BarRow:
    """A row of horizontal bars.

    Attributes:
        name: What it is about.
        bars: Bars below each other, each of pieces beside each other.
        values: What stands behind each bar.
    """

    name: str
    bars: tuple[tuple[Piece, ...], ...]
    values: tuple[str, ...]


def bars_plot(label: str, rows: Sequence[BarRow], *, name_width: int = 70, value_width: int = 62) -> Markup:
    """Horizontal bars, with their values in figures behind them.

    Args:
        label: What the image shows, for who can't see it.
        rows: The rows.
        name_width: Columns for the names.
        value_width: Columns for the figures.

    Returns:
        The image.
    """
    num_bars = sum(len(row.bars) for row in rows)
    drawing = Drawing(label, height=max(num_bars * _BAR_HEIGHT + len(rows) * _BAR_GAP + 8, 20))
    room = WIDTH - name_width - value_width
    y = 4.0
    for row in rows:
        drawing.text(name_width - 8, y + len(row.bars) * _BAR_HEIGHT / 2 + 4.5, row.name, kind="name", anchor="end")
        for pieces, value in zip(row.bars, row.values, strict=True):
            x = float(name_width)
            drawing.rect(x, y + 1, room, _BAR_HEIGHT - 2, kind="track", title=row.name)
            for piece in pieces:
                drawing.rect(x, y + 1, piece.share * room, _BAR_HEIGHT - 2, kind=piece.kind, title=piece.title)
                x += piece.share * room
            drawing.text(name_width + room + 6, y + _BAR_HEIGHT - 3.5, value, anchor="start")
            y += _BAR_HEIGHT
        y += _BAR_GAP
    return drawing.svg()


def columns_plot(
    label: str, names: Sequence[str], stacks: Sequence[Sequence[tuple[int, str, str]]], axis: str
) -> Markup:
    """Columns, each a stack of `(count, class, title)`.

    Args:
        label: What the image shows, for who can't see it.
        names: The name of each column.
        stacks: The pieces of each column, from below.
        axis: What the columns are.

    Returns:
        The image.
    """
    drawing = Drawing(label)
    y = count_axis(drawing, max((sum(count for count, _, _ in stack) for stack in stacks), default=1))
    width = (WIDTH - LEFT - RIGHT) / max(len(stacks), 1)
    every = max(1, math.ceil(len(names) / 12))
    for place, (name, stack) in enumerate(zip(names, stacks, strict=True)):
        x = LEFT + place * width
        below = 0
        for count, kind, title in stack:
            top, bottom = y(below + count), y(below)
            drawing.rect(x + width * 0.08, top, width * 0.84, bottom - top, kind=kind, title=title)
            below += count
        if place % every == 0 or name.endswith("+"):
            drawing.text(round(x + width / 2, 1), HEIGHT - BOTTOM + 16, name)
    drawing.text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, axis, kind="name")
    return drawing.svg()
