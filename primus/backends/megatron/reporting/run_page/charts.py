# SPDX-License-Identifier: Apache-2.0
"""Curves as SVG that takes its colours from the page."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from primus.backends.megatron.reporting.run_page.curves import Curve
from primus.sft.stats.drawing import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Drawing, Scale, short

# An axis of losses is logarithmic where the largest is so many times the smallest.
_LOG_FROM = 12
_MOST_TICKS = 6
# More points than that are seen as a line.
_MOST_MARKS = 60


@dataclass(frozen=True, slots=True)
class Stroke:
    """A curve as it is drawn.

    Attributes:
        curve: The curve.
        kind: Its class in the page's styles.
        is_faint: Whether it is the noise behind another.
        has_marks: Whether its points are marked, if they are not too many.
    """

    curve: Curve
    kind: str
    is_faint: bool = False
    has_marks: bool = False


def line_chart(
    label: str, strokes: Sequence[Stroke], *, form: Callable[[float], str], may_be_log: bool = False
) -> Markup:
    """Curves over the steps.

    Args:
        label: What the image shows, for who can't see it.
        strokes: The curves, those behind first.
        form: How a value is written on the axis and at a point.
        may_be_log: Whether the axis is logarithmic where values differ much.

    Returns:
        The image.
    """
    drawing = Drawing(label)
    drawn = [stroke for stroke in strokes if len(stroke.curve)]
    if not drawn:
        return drawing.svg()
    values = [value for stroke in drawn for value in stroke.curve.values_P.tolist()]
    x = _step_axis(drawing, drawn)
    y = _value_axis(drawing, min(values), max(values), form=form, may_be_log=may_be_log)
    for stroke in drawn:
        points = list(zip(stroke.curve.steps_P.tolist(), stroke.curve.values_P.tolist(), strict=True))
        faint = " faint" if stroke.is_faint else ""
        # A path of one point is not seen.
        if len(points) > 1:
            places = [(x(step), y(max(value, y.low))) for step, value in points]
            drawing.path(places, kind=f"line {stroke.kind}{faint}")
        if len(points) == 1 or (stroke.has_marks and len(points) <= _MOST_MARKS):
            for step, value in points:
                title = f"{stroke.curve.name}, step {step:,.0f}: {form(value)}"
                drawing.rect(x(step) - 2.5, y(value) - 2.5, 5, 5, kind=f"mark {stroke.kind}", title=title)
    return drawing.svg()


def _step_axis(drawing: Drawing, strokes: Sequence[Stroke]) -> Scale:
    first = min(float(stroke.curve.steps_P[0]) for stroke in strokes)
    last = max(float(stroke.curve.steps_P[-1]) for stroke in strokes)
    scale = Scale(0 if first <= last / 2 else first, last, LEFT, WIDTH - RIGHT)
    for tick in ticks(scale.low, last, is_whole=True):
        drawing.text(scale(tick), HEIGHT - BOTTOM + 16, short(tick) if tick >= 10_000 else f"{tick:g}")
    drawing.text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, "step", kind="name")
    return scale


def _value_axis(drawing: Drawing, low: float, high: float, *, form: Callable[[float], str], may_be_log: bool) -> Scale:
    is_log = may_be_log and high > 0 and low < high / _LOG_FROM
    if is_log:
        low = max(low, high / 1e6) * 0.9
        marks = [m * 10.0**e for e in range(-7, 7) for m in (1, 2, 5) if low <= m * 10.0**e <= high]
        if len(marks) > _MOST_TICKS + 2:
            marks = [mark for mark in marks if f"{mark:e}".startswith("1")]
    else:
        # From 0, so that a curve that falls by a half looks like it.
        low = min(low, 0.0)
        marks = ticks(low, high)
    scale = Scale(low, max(high, low + 1e-9), HEIGHT - BOTTOM, TOP - 12, is_log=is_log)
    for mark in marks:
        drawing.line(LEFT, scale(mark), WIDTH - RIGHT, scale(mark))
        drawing.text(LEFT - 6, scale(mark) + 4, form(mark), anchor="end")
    return scale


def ticks(low: float, high: float, *, is_whole: bool = False) -> list[float]:
    """Round numbers between two, at most six.

    Args:
        low: The least.
        high: The largest.
        is_whole: Whether only whole numbers will do.

    Returns:
        Ascending numbers.

    Examples:
        >>> ticks(0, 1000, is_whole=True)
        [0.0, 200.0, 400.0, 600.0, 800.0, 1000.0]
        >>> ticks(0, 6.3)
        [0.0, 2.0, 4.0, 6.0]
    """
    if high <= low:
        return [low]
    exponent = math.floor(math.log10(high - low))
    steps = [m * 10.0**e for e in (exponent - 1, exponent, exponent + 1) for m in (1, 2, 5)]
    step = next(s for s in steps if (high - low) / s < _MOST_TICKS and (s >= 1 or not is_whole))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]
