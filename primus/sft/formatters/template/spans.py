# SPDX-License-Identifier: Apache-2.0
"""Which characters of a rendered conversation the assistant wrote.

The assistant's part of its turn goes from the end of the header, which a generation prompt holds already, to the end
of the turn; text of other messages in between is left out. What can't be decided is an error, and never a guess.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NoReturn

from primus.chat.messages import Message
from primus.errors import RenderError
from primus.sft.formatters.rendered import CharSpan, TurnSpan
from primus.sft.formatters.template.shape import TOKEN, Shape, longest_prefix
from primus.sft.formatters.template.tracking import TrackedRender
from primus.sft.formatters.template.turns import Turn, Turns

_SAID = frozenset(["content", "reasoning", "arguments"])
_THOUGHT = re.compile(r"<think>.*?</think>|^.*?</think>", re.DOTALL)


class SpanFinder:
    """Finds spans in the renders of one template.

    Args:
        shape: The template's habits.
        controls: Finds control tokens.
    """

    def __init__(self, shape: Shape, *, controls: re.Pattern[str]) -> None:
        self._shape = shape
        self._controls = controls

    def find(self, render: TrackedRender, messages: Sequence[Message], *, origin: str) -> tuple[CharSpan, ...]:
        """The spans of the assistant's turns.

        Args:
            render: The rendered conversation.
            messages: Its messages.
            origin: Where it came from.

        Returns:
            Disjoint spans in order.

        Raises:
            RenderError: If a turn's part of the text is not certain.
        """
        turns, moved = Turns(render), _moved(render)
        spans: list[CharSpan] = []
        for number, message in enumerate(messages):
            if message.role != "assistant":
                continue
            if number in moved:
                _refuse(origin, number, "the template writes it elsewhere, or does not go through messages one by one")
            turn = turns.find(number)
            if turn is None:
                continue
            _check_form(render, turn, message, origin)
            before = messages[number - 1].role if number else None
            weight = 1.0 if message.weight is None else message.weight
            spans += self._turn(render.text, turn, self._shape.headers[before], weight, origin)
        spans.sort(key=lambda span: (span.start, span.end))
        for one, other in pairwise(spans):
            if other.start < one.end:
                _refuse(origin, other.turn, f"its text lies inside that of turn {one.turn}")
        return tuple(spans)

    def _turn(self, text: str, turn: Turn, header: str | None, weight: float, origin: str) -> Iterator[CharSpan]:
        start = self._start(text, turn, header, origin)
        if start is None:
            return
        pieces: list[tuple[int, int]] = []
        at, own_end, is_other = start, start, False
        for atom in turn.atoms:
            if atom.start < start:
                continue
            if atom.is_own:
                at = atom.start if is_other else at
                own_end, is_other = atom.end, False
            elif not is_other:
                pieces.append((at, self._call_end(text, own_end, atom.start, turn, origin)))
                is_other = True
        end = None
        if not is_other:
            content_end, end = self._split_tail(text, own_end, turn.end)
            pieces.append((at, content_end))
        written = [piece for piece in pieces if piece[0] < piece[1]] or pieces[-1:]
        for a, b in written:
            yield CharSpan(a, b, kind="content", turn=turn.turn, weight=weight)
        if end is not None:
            yield CharSpan(*end, kind="end_of_turn", turn=turn.turn, weight=weight)

    def _start(self, text: str, turn: Turn, header: str | None, origin: str) -> int | None:
        """Where the assistant begins to write; None if nothing in the turn can be said to be its."""
        front = turn.front()
        words = "".join(text[a:b] for a, b in front)
        own = turn.first_own
        found = longest_prefix(header, words) if header else None
        if found is None:  # opened as after other messages: no prompt has that here, but a header it is
            others = {other for other in self._shape.headers.values() if other and other.strip()}
            found = max((words.rfind(other) + len(other) for other in others if other in words), default=None)
        if found is not None:
            self._refuse_other_header(header or "", words, found, turn=turn.turn, origin=origin)
            return _place(front, found)
        follows_other = any(not atom.is_own for atom in turn.atoms if own is None or atom.start < own.start)
        if header == "" and not follows_other:
            return front[0][0] if front else None if own is None else own.start
        if not words.strip():
            return None if own is None else own.start
        units, opening = TOKEN.findall(words.strip()), TOKEN.findall(self._shape.call_opening)
        if opening[-len(units) :] != units:
            why = f"it opens with {words.strip()[:40]!r}, and a generation prompt is {header!r}"
            _refuse(origin, turn.turn, why)
        return _place(front, len(words) - len(words.lstrip()))  # no header at all, but what calls begin with

    def _refuse_other_header(self, header: str, words: str, found: int, *, turn: int, origin: str) -> None:
        """Refuse a header that goes on in other words than the prompt's: tags may differ, as of empty thoughts."""
        if any(words[:found].endswith(whole) for whole in (header, *self._shape.headers.values()) if whole):
            return
        rest, opening = TOKEN.findall(words[found:].strip()), TOKEN.findall(self._shape.call_opening)
        if any(unit.isalnum() for unit in rest) and opening[-len(rest) :] != rest:
            _refuse(origin, turn, f"it opens with {words.strip()[:40]!r}, and a generation prompt is {header!r}")

    def _call_end(self, text: str, start: int, end: int, turn: Turn, origin: str) -> int:
        """Where what the assistant wrote ends, and what a tool answered begins."""
        gap = text[start:end]
        if not gap:
            return start
        opener = self._shape.answer_opener
        if opener is None or gap.count(opener) != 1:
            _refuse(origin, turn.turn, "text of another message stands in it, and where that begins is not certain")
        return start + gap.index(opener)

    def _split_tail(self, text: str, start: int, turn_end: int) -> tuple[int, tuple[int, int] | None]:
        """Where the content ends, and the place of what ends the turn; whitespace behind that is nobody's."""
        tail = text[start:turn_end].rstrip()
        if self._shape.answer_opener is not None:
            tail = tail.removesuffix(self._shape.answer_opener)
        tails = self._shape.tails
        at, ending = next(((len(tail) - len(ending), ending) for ending in tails if tail.endswith(ending)), (-1, ""))
        if at < 0:
            at, ending = next(((tail.find(ending), ending) for ending in tails if ending in tail), (-1, ""))
        if at >= 0:
            control = self._controls.search(ending)
            first = start + at + (control.start() if control else 0)
            return first, (first, start + at + len(ending))
        controls = list(self._controls.finditer(tail))
        if controls and controls[-1].end() == len(tail):
            return start + controls[-1].start(), (start + controls[-1].start(), start + len(tail))
        return start + len(tail), None


def _check_form(render: TrackedRender, turn: Turn, message: Message, origin: str) -> None:
    """Refuse a turn without what the message says."""
    fields = {render.sources[source].field for source in turn.own_sources}
    if "name" in fields:
        _refuse(origin, turn.turn, "the template writes the name of its speaker into it, which no server does")
    if message.tool_calls and "call" not in fields:
        _no_form(origin, turn.turn, "tool calls")
    if not fields & {"content", "call"} and _THOUGHT.sub("", message.content).strip():
        _no_form(origin, turn.turn, "content")


def _moved(render: TrackedRender) -> set[int]:
    """The messages of which something is written, but not in their turns."""
    turns: dict[int, set[int | None]] = defaultdict(set)
    for segment in render.segments:
        for run in render.runs[segment.first_run : segment.last_run]:
            if run.end > run.start:
                turns[run.source].add(segment.turn)
    sources = ((render.sources[index], found) for index, found in turns.items())
    return {
        source.turn
        for source, found in sources
        if source.turn is not None and source.turn not in found and source.field in _SAID
    }


def _place(stretches: Sequence[tuple[int, int]], at: int) -> int:
    """The place in the whole text of a place in stretches of it."""
    for start, end in stretches:
        if at <= end - start:
            return start + at
        at -= end - start
    raise AssertionError("a place behind the stretches")


def turn_spans(render: TrackedRender) -> tuple[TurnSpan, ...]:
    """The pieces of the text, with the messages that they were written for."""
    return tuple(TurnSpan(s.start, s.end, s.turn) for s in render.segments if s.turn is not None and s.end > s.start)


def markers(render: TrackedRender, controls: re.Pattern[str]) -> tuple[tuple[int, int], ...]:
    """The control tokens that the template itself wrote: in no string of the conversation, across no edge of one."""
    found: list[tuple[int, int]] = []
    at = 0
    end_of_text = (len(render.text), len(render.text))
    for start, end in [*((run.start, run.end) for run in render.runs if run.end > run.start), end_of_text]:
        found += [match.span() for match in controls.finditer(render.text, at, start)]
        at = end
    return tuple(found)


def _refuse(origin: str, turn: int, why: str) -> NoReturn:
    raise RenderError(
        f"{origin}: turn {turn}: what the assistant wrote can't be told from the template's words ({why}); use another"
        " template, or drop the row",
        reason="template_spans",
    )


def _no_form(origin: str, turn: int, what: str) -> NoReturn:
    raise RenderError(
        f"{origin}: turn {turn}: the chat template writes nothing of the {what}; use a template that does, or drop the"
        " row",
        reason="no_form",
    )
