# SPDX-License-Identifier: Apache-2.0
"""What stands in one turn: the message's own text, text of other messages, and the template's words between them."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from primus.sft.formatters.template.tracking import Segment, TrackedRender


class Atom(NamedTuple):
    """Characters `[start, end)` of a turn that are not the template's words.

    Attributes:
        start: First character.
        end: One past the last.
        is_own: Whether the message itself says them, here.
    """

    start: int
    end: int
    is_own: bool


class Turn:
    """One message's place in a rendered text.

    Args:
        render: The text.
        turn: Index of the message.
        segments: The text from the first segment that was written for the message to the last.
    """

    def __init__(self, render: TrackedRender, turn: int, segments: Sequence[Segment]) -> None:
        self.turn = turn
        self.segments = segments
        self.start = segments[0].start
        self.end = segments[-1].end
        found, own_sources = _atoms(render, turn, segments)
        self.atoms = _without_echoes(found)
        self.own_sources = frozenset(own_sources)

    @property
    def first_own(self) -> Atom | None:
        """The first text of the message itself."""
        return next((atom for atom in self.atoms if atom.is_own), None)

    def front(self) -> list[tuple[int, int]]:
        """The template's words in front of the message's own text: stretches `[start, end)` of the whole text."""
        own = self.first_own
        limit = self.end if own is None else own.start
        start = max((atom.end for atom in self.atoms if not atom.is_own and atom.end <= limit), default=self.start)
        return [
            (max(segment.start, start), min(segment.end, limit))
            for segment in self.segments
            if segment.turn == self.turn and max(segment.start, start) < min(segment.end, limit)
        ]


class Turns:
    """The turns of a rendered conversation.

    Args:
        render: The text.
    """

    def __init__(self, render: TrackedRender) -> None:
        self._render = render
        self._places: dict[int, list[int]] = defaultdict(list)
        for place, segment in enumerate(render.segments):
            if segment.turn is not None and segment.end > segment.start:
                self._places[segment.turn].append(place)

    def find(self, turn: int) -> Turn | None:
        """The turn of a message; None if nothing was written for it."""
        places = self._places.get(turn)
        if not places:
            return None
        return Turn(self._render, turn, self._render.segments[places[0] : places[-1] + 1])


class _Found(NamedTuple):
    atom: Atom
    is_repeat: bool


def _atoms(render: TrackedRender, turn: int, segments: Sequence[Segment]) -> tuple[list[_Found], set[int]]:
    """What is not the template's, in order, and the message's own sources in it.

    The name of the speaker, and empty strings of the message itself, are in the second only, or nowhere.
    """
    own: set[int] = set()
    found: list[_Found] = []
    seen: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for segment in segments:
        if segment.turn != turn:
            if segment.end > segment.start:
                found.append(_Found(Atom(segment.start, segment.end, is_own=False), is_repeat=False))
            continue
        for run in render.runs[segment.first_run : segment.last_run]:
            source = render.sources[run.source]
            if source.turn != turn:
                found.append(_Found(Atom(run.start, run.end, is_own=False), is_repeat=False))
                continue
            if run.end > run.start:
                own.add(run.source)
            if run.end > run.start and source.field != "name":
                repeated = any(a <= run.first and run.last <= b for a, b in seen[run.source])
                seen[run.source].append((run.first, run.last))
                found.append(_Found(Atom(run.start, run.end, is_own=True), is_repeat=repeated))
    return found, own


def _without_echoes(found: Sequence[_Found]) -> list[Atom]:
    """Repeated text that leads to or follows text of other messages is part of that: the name above a tool's answer."""
    leads_to_other = [False] * len(found)
    is_other_next = False
    for i in range(len(found) - 1, -1, -1):
        leads_to_other[i] = is_other_next
        if not found[i].is_repeat:
            is_other_next = not found[i].atom.is_own
    atoms, in_other = [], False
    for (atom, is_repeat), leads in zip(found, leads_to_other, strict=True):
        if is_repeat and (in_other or leads):
            atom = atom._replace(is_own=False)
        in_other = not atom.is_own
        atoms.append(atom)
    return atoms
