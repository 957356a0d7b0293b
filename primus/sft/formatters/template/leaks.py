# SPDX-License-Identifier: Apache-2.0
"""Whether text was copied by a way on which strings lose their origin.

The template renders a second time with the letters of the strings changed. What it wrote itself has to stay as it was,
and the runs have to lie where they lay; a copy without a run shows as text of the template's own that has changed.
"""

import re
from collections import defaultdict
from collections.abc import Sequence

from jinja2 import nodes

from primus.sft.formatters.template.environment import ChatEnvironment
from primus.sft.formatters.template.origin import Run
from primus.sft.formatters.template.tracking import Source, TrackedRender

_TAG = r"<[^<>\s]{1,60}>|\[/?[A-Z_]{1,40}\]"
WRITTEN_FIELDS = frozenset(["content", "reasoning", "call", "arguments"])
"""The fields of an assistant message that its author writes; the others name things."""


class _Shift(dict[int, str]):
    """Each letter and digit to the next one of its kind; everything else stays."""

    def __missing__(self, code: int) -> str:
        """Find what takes the place of a character, once."""
        one = chr(code)
        new = one
        if one.isascii():
            if one.isalnum():
                new = {"z": "a", "Z": "A", "9": "0"}.get(one) or chr(code + 1)
        elif one.isalnum():
            new = next((near for near in map(chr, (code + 1, code - 1)) if _is_like(near, one)), one)
        self[code] = new
        return new


def _is_like(one: str, other: str) -> bool:
    kinds = (str.isalnum, str.isupper, str.islower, str.isdigit, str.isdecimal, str.isnumeric)
    lengths = ((len(case(one)), len(case(other))) for case in (str.upper, str.lower, str.casefold))
    return all(kind(one) == kind(other) for kind in kinds) and all(a == b for a, b in lengths)


class LetterShift:
    """Changes the letters of a text, but for the words that a template may look for.

    Args:
        source: The template.
        environment: Parses it.
        controls: Finds control tokens; these are changed, too, unless the template looks for them.
    """

    def __init__(self, source: str, *, environment: ChatEnvironment, controls: re.Pattern[str]) -> None:
        words = _words_looked_for(environment.parse(source))
        self._words = frozenset(words)
        self._controls = controls
        longest_first = sorted(words, key=lambda word: (-len(word), word))
        self._kept = re.compile("(" + "|".join([*map(re.escape, longest_first), _TAG]) + ")")
        self._shift = _Shift()

    def __call__(self, text: str) -> str:
        """Change a text."""
        parts = self._kept.split(text)
        for i, part in enumerate(parts):
            if i % 2 == 0 or (part not in self._words and self._controls.fullmatch(part)):
                parts[i] = part.translate(self._shift)
        return "".join(parts)


def _words_looked_for(tree: nodes.Template) -> set[str]:
    """The string constants that the template compares or tests with, or passes to anything."""
    places: list[nodes.Node] = []
    for node in tree.find_all((nodes.Compare, nodes.Test, nodes.Filter, nodes.Call, nodes.Getitem)):
        if isinstance(node, nodes.Compare | nodes.Getitem):
            places += [node]
        elif isinstance(node, nodes.Test | nodes.Filter | nodes.Call):
            places += [*(node.args or ()), *(keyword.value for keyword in node.kwargs or ())]
            places += [node.node] if isinstance(node, nodes.Test) and node.node is not None else []
    constants = {
        constant.value
        for place in places
        for constant in ([place] if isinstance(place, nodes.Const) else place.find_all(nodes.Const))
        if isinstance(constant.value, str)
    }
    return {word for word in constants if any(map(str.isalnum, word))}


def uncovered(render: TrackedRender) -> list[int]:
    """The sources of which something is not in the text, apart from whitespace at their edges."""
    runs_of: dict[int, list[Run]] = defaultdict(list)
    for run in render.runs:
        runs_of[run.source].append(run)
    result = []
    for index, source in enumerate(render.sources):
        end = len(source.text.rstrip())
        at = len(source.text) - len(source.text.lstrip())
        for run in sorted(runs_of[index], key=lambda run: run.first):
            if run.first > at:
                break
            at = max(at, run.last)
        if at < end:
            result.append(index)
    return result


def outside(render: TrackedRender, runs: Sequence[Run]) -> list[str]:
    """The text between runs."""
    edges = [0, *(edge for run in runs for edge in (run.start, run.end)), len(render.text)]
    return [render.text[edges[i] : edges[i + 1]] for i in range(0, len(edges), 2)]


def leaked(render: TrackedRender, changed: TrackedRender) -> bool:
    """Whether the render of changed strings differs in more than its runs.

    Args:
        render: The render of the strings as they are.
        changed: The render of the changed strings.

    Returns:
        True if something was copied that no run tells of, or the letters of a string decide about the text.
    """
    return list(render.runs) != list(changed.runs) or outside(render, render.runs) != outside(changed, changed.runs)


def is_compared(source: Source) -> bool:
    """Whether templates compare a string with those of other messages: a change has to change them all."""
    return source.field in {"id", "call", "name"}
