# SPDX-License-Identifier: Apache-2.0
"""Whether the spans agree with what a template itself marks as the assistant's, in `{% generation %}`."""

from collections.abc import Sequence
from itertools import groupby, pairwise

from primus.errors import RenderError
from primus.sft.formatters.rendered import CharSpan
from primus.sft.formatters.template.tracking import TrackedRender


def check_generations(render: TrackedRender, spans: Sequence[CharSpan], *, origin: str) -> None:
    """Refuse a conversation of which the template marks other text than what the spans hold.

    The two may differ in words of the template: many templates mark the newline of the header, or the one behind the
    end of the turn. They may not differ in a single character of a message.

    Args:
        render: The rendered conversation.
        spans: The spans of the assistant's turns, in order.
        origin: Where the conversation came from.

    Raises:
        RenderError: If they do.
    """
    if not render.generations:
        return
    ours = [(span.start, span.end) for span in spans]
    for start, end in _in_one_only(ours, render.generations):
        run = next((run for run in render.runs if max(run.start, start) < min(run.end, end)), None)
        if run is None:
            continue
        turn = min(spans, key=lambda span: max(span.start - run.start, run.start - span.end, 0)).turn
        own = [(span.start, span.end) for span in spans if span.turn == turn]
        first, last = min(own)[0], max(own)[1]
        theirs = [mark for mark in render.generations if max(mark[0], first) < min(mark[1], last)]
        raise RenderError(
            f"{origin}: turn {turn}: the template marks the characters {_text(theirs)} as the assistant's, and it wrote"
            f" {_text(own)}; repair the {{% generation %}} tags, or take them out",
            reason="generation_tags",
        )


def _in_one_only(ours: Sequence[tuple[int, int]], theirs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The stretches that lie in one of two lists of disjoint ranges."""
    edges = sorted(
        [
            (place, side, step)
            for side, ranges in enumerate((ours, theirs))
            for r in ranges
            for place, step in zip(r, (1, -1), strict=True)
        ]
    )
    found: list[tuple[int, int]] = []
    depth = [0, 0]
    places = [(place, list(group)) for place, group in groupby(edges, key=lambda edge: edge[0])]
    for (place, changes), (next_place, _) in pairwise([*places, (places[-1][0], [])]):
        for _, side, step in changes:
            depth[side] += step
        if (depth[0] > 0) != (depth[1] > 0):
            found.append((place, next_place))
    return found


def _text(ranges: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"[{start}, {end})" for start, end in ranges) or "none"
