# SPDX-License-Identifier: Apache-2.0
"""The plots of the report, each with a label that says what it shows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from primus.sft.stats.drawing import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    BarRow,
    Drawing,
    Piece,
    Scale,
    bars_plot,
    columns_plot,
    count_axis,
    power,
)  # fmt: skip
from primus.sft.stats.figures import Bin, Coverage, StatsReport, TurnTokens, percent

_MOST_TURNS = 30
_MOST_MESSAGES = 30
_MIN_LABEL_GAP = 44
_SEEN = 0.001


def _length_axis(drawing: Drawing, low: int, high: int) -> Scale:
    """A logarithmic axis with the powers of two, as many as there is room for."""
    scale = Scale(low, high, LEFT, WIDTH - RIGHT, is_log=True)
    first, last = math.ceil(math.log2(low)), math.floor(math.log2(high))
    every = max(1, math.ceil((last - first + 1) / 8))
    for exponent in range(first, last + 1, every):
        drawing.text(scale(2**exponent), HEIGHT - BOTTOM + 16, power(2**exponent))
    drawing.text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, "positions (tokens - 1), logarithmic", kind="name")
    return scale


def _mark_lengths(drawing: Drawing, report: StatsReport, scale: Scale) -> None:
    """Dashed lines at the candidate lengths, labelled where there is room."""
    ordered = sorted(report.seq_lengths, key=lambda w: (w.seq_length != report.seq_length, w.seq_length))
    labelled: list[float] = []
    for weighed in ordered:
        length = weighed.seq_length
        if not scale.low <= length <= scale.high:
            continue
        is_own = length == report.seq_length
        x = scale(length)
        drawing.line(x, TOP - 4, x, HEIGHT - BOTTOM, kind="own" if is_own else "candidate")
        if all(abs(x - other) >= _MIN_LABEL_GAP for other in labelled):
            drawing.text(min(x, WIDTH - RIGHT - 12), TOP - 9, power(length), kind="own-name" if is_own else "tick")
            labelled.append(x)


def lengths_plot(report: StatsReport) -> Markup:
    """The histogram of lengths, with the candidate lengths as lines.

    Args:
        report: The report.

    Returns:
        The image.
    """
    bins = report.lengths_histogram
    drawing = Drawing("Histogram of the positions of conversations, with candidate sequence lengths as lines")
    if not bins:
        return drawing.svg()
    y = count_axis(drawing, max(cell.count for cell in bins))
    x = _length_axis(drawing, bins[0].low, bins[-1].high)
    for cell in bins:
        title = f"{cell.low:,} to {cell.high - 1:,}: {cell.count:,} conversations"
        left, right = x(cell.low), x(cell.high)
        drawing.rect(left + 0.5, y(cell.count), right - left - 1, y(0) - y(cell.count), kind="plain", title=title)
    _mark_lengths(drawing, report, x)
    return drawing.svg()


def coverage_plot(report: StatsReport) -> Markup:
    """What sequences of growing length hold.

    Args:
        report: The report.

    Returns:
        The image.
    """
    drawing = Drawing("Share of conversations that fit, and of trained tokens that are kept, over the sequence length")
    bins = report.lengths_histogram
    if not bins:
        return drawing.svg()
    points: Sequence[Coverage] = [point for point in report.coverage if point.length >= bins[0].low]
    y = Scale(0, 1, HEIGHT - BOTTOM, TOP)
    for share in (0, 0.25, 0.5, 0.75, 1):
        drawing.line(LEFT, y(share), WIDTH - RIGHT, y(share))
        drawing.text(LEFT - 6, y(share) + 4, f"{share:.0%}", anchor="end")
    x = _length_axis(drawing, bins[0].low, bins[-1].high)
    _mark_lengths(drawing, report, x)
    drawing.path([(x(p.length), y(p.conversations)) for p in points], kind="line first")
    drawing.path([(x(p.length), y(p.targets)) for p in points], kind="line second")
    return drawing.svg()


def lost_plot(report: StatsReport) -> Markup:
    """The targets that candidate lengths lose, cut on the right and dropped.

    Args:
        report: The report.

    Returns:
        The image.
    """
    return _pairs_plot(
        report,
        "Share of the trained tokens that is lost at each candidate length",
        [(w.right_lost_target_share, w.drop_lost_target_share) for w in report.seq_lengths],
        ("cut on the right", "dropped"),
    )


def padding_plot(report: StatsReport) -> Markup:
    """The padding that candidate lengths need, alone and packed.

    Args:
        report: The report.

    Returns:
        The image.
    """
    return _pairs_plot(
        report,
        "Share of padding at each candidate length",
        [(w.padding_share, w.packed_padding_share) for w in report.seq_lengths],
        ("each conversation alone", "packed"),
    )


def _pairs_plot(
    report: StatsReport, label: str, shares: Sequence[tuple[float, float]], names: tuple[str, str]
) -> Markup:
    rows = [
        BarRow(
            f"{weighed.seq_length:,}{' *' if weighed.seq_length == report.seq_length else ''}",
            tuple(
                (Piece(share, kind, f"{weighed.seq_length:,}, {name}: {percent(share)}"),)
                for share, kind, name in zip(pair, ("first-fill", "second-fill"), names, strict=True)
            ),
            tuple(percent(share) for share in pair),
        )
        for weighed, pair in zip(report.seq_lengths, shares, strict=True)
    ]
    return bars_plot(label, rows)


@dataclass(frozen=True, slots=True)
class Part:
    """A part of all tokens.

    Attributes:
        name: Whose they are.
        kind: Its class in the page's styles.
        share: Its share of all tokens.
    """

    name: str
    kind: str
    share: float


def token_parts(report: StatsReport) -> list[Part]:
    """All tokens in parts: what each role says, what stands around it, what belongs to no message.

    Args:
        report: The report.

    Returns:
        The parts; their shares sum to 1.
    """
    total = report.num_tokens or 1
    parts = [Part(role.role, fill(role.role), role.content_tokens / total) for role in report.roles]
    around = sum(role.overhead_tokens for role in report.roles)
    parts.append(Part("the format around it: headers, markers, tools", "around", around / total))
    if report.outside_tokens:
        parts.append(Part("of no message", "outside", report.outside_tokens / total))
    return parts


def roles_plot(report: StatsReport) -> Markup:
    """All tokens as one bar.

    Args:
        report: The report.

    Returns:
        The image.
    """
    parts = token_parts(report)
    label = "Tokens by role: " + ", ".join(f"{part.name} {percent(part.share)}" for part in parts)
    drawing = Drawing(label, height=10, is_strip=True)
    x = 0.0
    for part in parts:
        drawing.rect(x, 0, WIDTH * part.share, 10, kind=part.kind, title=f"{part.name}: {percent(part.share)}")
        x += WIDTH * part.share
    return drawing.svg()


def fill(role: str) -> str:
    """The class of a role's bars in the page's styles."""
    return role if role in ("system", "user", "assistant", "tool") else "other"


def messages_plot(report: StatsReport) -> Markup:
    """Conversations by their number of messages; large numbers stand together.

    Args:
        report: The report.

    Returns:
        The image.
    """
    cells = {cell.low: cell.count for cell in report.messages_histogram}
    most = min(max(cells, default=1), _MOST_MESSAGES)
    bins = [(str(n), cells.get(n, 0)) for n in range(1, most)]
    rest = sum(count for n, count in cells.items() if n >= most)
    bins.append((f"{most}+" if max(cells, default=1) > most else str(most), rest))
    titles = [f"{name} messages: {count:,} conversations" for name, count in bins]
    return columns_plot(
        "Conversations by their number of messages", [name for name, _ in bins],
        [[(count, "plain", title)] for (_, count), title in zip(bins, titles, strict=True)], "messages",
    )  # fmt: skip


def turns_plot(report: StatsReport) -> Markup:
    """Tokens by the place of their message, by role.

    Args:
        report: The report.

    Returns:
        The image.
    """
    shown: list[TurnTokens] = report.by_turn[:_MOST_TURNS]
    stacks = [
        [
            *((count, fill(role), f"message {turn.index}, {role}: {count:,} tokens")
              for role, count in turn.content_tokens.items()),
            (turn.overhead_tokens, "around", f"message {turn.index}, format: {turn.overhead_tokens:,} tokens"),
        ]
        for turn in shown
    ]  # fmt: skip
    names = [str(turn.index) for turn in shown]
    return columns_plot("Tokens by the place of their message", names, stacks, "place of the message, from 0")


def targets_plot(bins: Sequence[Bin]) -> Markup:
    """Conversations by the share of their tokens that is trained.

    Args:
        bins: Ten bins of ten percent.

    Returns:
        The image.
    """
    stacks = [[(c.count, "assistant", f"{c.low} to {c.high} %: {c.count:,} conversations")] for c in bins]
    return columns_plot(
        "Conversations by the share of their tokens that is trained", [str(c.low) for c in bins], stacks,
        "trained tokens, % of the conversation, from",
    )  # fmt: skip


def scripts_plot(report: StatsReport, *, most: int = 8) -> Markup:
    """The shares of letters and of conversations that each script has.

    Args:
        report: The report.
        most: Scripts that are shown, of those with a thousandth of the letters or more.

    Returns:
        The image.
    """
    letters, mostly = sum(report.letters.values()) or 1, sum(report.main_scripts.values()) or 1
    names = [name for name, count in report.letters.items() if count >= _SEEN * letters][:most]
    rows = []
    for name in names:
        pair = report.letters[name] / letters, report.main_scripts.get(name, 0) / mostly
        titles = f"{name}: {percent(pair[0])} of the letters", f"mostly {name}: {percent(pair[1])} of the conversations"
        bars = tuple(
            (Piece(share, kind, title),)
            for share, kind, title in zip(pair, ("first-fill", "second-fill"), titles, strict=True)
        )
        rows.append(BarRow(name, bars, tuple(percent(share) for share in pair)))
    return bars_plot("Scripts: share of letters, and of conversations that are mostly in it", rows, name_width=90)
