# SPDX-License-Identifier: Apache-2.0
"""A render that says for every character of the text which message it was copied from, and during which it was written.

The template runs as it is, on strings that carry their origin. What joins strings without asking them (the pieces of
the text, `~`, `join`, JSON, printed lists) is replaced by what keeps their runs; and every loop over messages says
which message it is at.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import BuiltinMethodType
from typing import Any

import jinja2
import jinja2.filters
from jinja2 import nodes
from jinja2.runtime import Context, Macro
from markupsafe import Markup

from primus.errors import RenderError
from primus.sft.formatters.template.environment import (
    TEMPLATE_FAILURES,
    ChatEnvironment,
    compile_template,
    count_loops,
    failure_text,
    hidden_filter,
)
from primus.sft.formatters.template.limits import limited, within_limit
from primus.sft.formatters.template.origin import (
    EXACT,
    WHOLE,
    Run,
    Tracked,
    joined,
    joined_by,
    plain,
    runs_of,
)
from primus.sft.formatters.template.values import tracked_json, tracked_text

# Names of filters that no template can write down.
_AT, _ENTER, _LEAVE = "turn at", "turn enter", "turn leave"
# What the generated code hands to `call` for functions that ask for the context.
_SCOPES = frozenset(["_loop_vars", "_block_vars"])
# The source of the runs that mark what stands between `{% generation %}` and its end.
_GENERATION = -1


@dataclass(frozen=True, slots=True)
class Source:
    """A string of a conversation.

    Attributes:
        turn: Index of its message; None for a tool definition.
        field: Where in the message it stands: `content`, `reasoning`, `call` (a tool call's name), `arguments`, `key`
            (of arguments or definitions), `id`, `name` or `tool`.
        text: The string.
    """

    turn: int | None
    field: str
    text: str


@dataclass(frozen=True, slots=True)
class Segment:
    """What was written while a loop was at one message.

    Attributes:
        start: First character.
        end: One past the last.
        turn: Index of the message; None outside of loops over messages.
        first_run: Index of the first run that was written with it.
        last_run: One past the last.
    """

    start: int
    end: int
    turn: int | None
    first_run: int
    last_run: int


@dataclass(frozen=True, slots=True)
class TrackedRender:
    """A rendered text and where it came from.

    Attributes:
        text: The text.
        runs: Disjoint runs in order, over `sources`; empty ones are traces of empty strings.
        segments: All of the text, in order.
        generations: What stands in `{% generation %}`, in order.
        sources: The strings of the conversation.
    """

    text: str
    runs: Sequence[Run]
    segments: Sequence[Segment]
    generations: Sequence[tuple[int, int]]
    sources: Sequence[Source]


class TrackedTemplate:
    """A chat template that renders tracked strings.

    Args:
        source: Its text.
        origin: Where it came from, for messages.
        now: What its clock shows.
    """

    def __init__(self, source: str, *, origin: str, now: datetime) -> None:
        self._environment = _TrackingEnvironment(now)
        _, self._template = compile_template(
            source, environment=self._environment, origin=origin, prepare=_prepare, names={"str": tracked_text}
        )

    def render(self, variables: Mapping[str, Any], sources: Sequence[Source], *, origin: str) -> TrackedRender:
        """Render it.

        Args:
            variables: What the template sees, with the messages and tools that `track` gave.
            sources: What `track` gave along.
            origin: Where the conversation came from.

        Returns:
            The text with its runs.

        Raises:
            RenderError: If the template fails on tracked strings, which it does not on plain ones.
        """
        environment = self._environment
        environment.begin(variables["messages"])
        pieces: list[str] = []
        marks: list[int | None] = []
        try:
            for piece in within_limit(self._template.root_render_func(self._template.new_context(dict(variables)))):
                pieces.append(piece)
                marks.append(environment.turn)
        except TEMPLATE_FAILURES as exc:
            raise RenderError(
                f"{origin}: the chat template fails on strings that are followed ({failure_text(exc)}), so what it does"
                " with them is not known; use another template",
                reason="template_spans",
            ) from exc
        text = joined(pieces)
        runs = runs_of(text)
        return TrackedRender(
            text=plain(text),
            runs=[run for run in runs if run.source != _GENERATION],
            segments=_segments(pieces, marks),
            generations=[(run.start, run.end) for run in runs if run.source == _GENERATION],
            sources=sources,
        )


class _TrackingEnvironment(ChatEnvironment):
    """An environment whose operations keep runs, and which knows the message that is being rendered."""

    def __init__(self, now: datetime) -> None:
        super().__init__(now)
        self.filters.update(tojson=tracked_json, join=_join, string=_string, safe=_safe)
        self.filters.update({_AT: _at, _ENTER: _enter, _LEAVE: _leave})
        self.turn: int | None = None
        self._outer: list[int | None] = []
        self._turn_of: dict[int, int] = {}

    def begin(self, messages: Sequence[object]) -> None:
        """Prepare for the render of messages, which are told apart by identity."""
        self.steps = 0
        self.turn = None
        self._outer = []
        self._turn_of = {id(message): turn for turn, message in enumerate(messages)}

    def at(self, item: object) -> None:
        """A loop has come to an item, perhaps a message."""
        self.turn = self._turn_of.get(id(item), self.turn)

    def enter(self) -> None:
        """A loop begins."""
        self._outer.append(self.turn)

    def leave(self) -> None:
        """A loop has ended; what follows belongs to where it stands."""
        self.turn = self._outer.pop()

    def join_pieces(self, pieces: Iterable[Any]) -> str:
        return limited(joined(pieces, tracked_text))

    def join_operands(self, operands: Iterable[Any]) -> str:
        return limited(joined(operands, tracked_text))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805, PYI063 - as there
        """Call what a template calls; `join` and `replace` of an ordinary string keep the runs of their arguments."""
        if type(__obj) is BuiltinMethodType and type(__obj.__self__) is str:
            given = {name: value for name, value in kwargs.items() if name not in _SCOPES}
            if __obj.__name__ == "join":
                return joined_by(__obj.__self__, *args, **given)
            if __obj.__name__ == "replace":
                return Tracked(__obj.__self__).replace(*args, **given)
        return super().call(__context, __obj, *args, **kwargs)

    def generation(self, caller: Macro) -> str:
        text = caller()
        mark = Run(0, len(text), _GENERATION, 0, 0, WHOLE)
        return Tracked(plain(text), [mark, *runs_of(text)]) if text else text


def _prepare(tree: nodes.Template) -> None:
    count_loops(tree)
    for parent in [tree, *tree.find_all(nodes.Node)]:
        for field in ("body", "else_"):
            body = getattr(parent, field, None)
            if isinstance(body, list):
                setattr(parent, field, [node for child in body for node in _with_turns(child)])


def _with_turns(node: nodes.Node) -> list[nodes.Node]:
    """A loop, and what keeps the message that is being rendered. What a recursive loop writes comes out at its end."""
    if not isinstance(node, nodes.For):
        return [node]
    if isinstance(node.target, nodes.Name) and not node.recursive:
        node.body.insert(0, _call(_AT, nodes.Name(node.target.name, "load"), node))
    nothing = nodes.Const(None)
    return [_call(_ENTER, nothing, node), node, _call(_LEAVE, nothing, node)]


def _call(name: str, operand: nodes.Expr, place: nodes.Node) -> nodes.ExprStmt:
    return nodes.ExprStmt(hidden_filter(name, operand), lineno=place.lineno)


@jinja2.pass_context
def _at(context: Context, item: object) -> None:
    _environment(context).at(item)


@jinja2.pass_context
def _enter(context: Context, nothing: None) -> None:  # noqa: ARG001 - a filter has an operand
    _environment(context).enter()


@jinja2.pass_context
def _leave(context: Context, nothing: None) -> None:  # noqa: ARG001
    _environment(context).leave()


def _environment(context: Context) -> _TrackingEnvironment:
    environment = context.environment
    assert isinstance(environment, _TrackingEnvironment)
    return environment


@jinja2.pass_environment
def _join(
    environment: jinja2.Environment, value: Iterable[Any], d: str = "", attribute: str | int | None = None
) -> str:
    """The filter `join`."""
    if attribute is not None:
        value = map(jinja2.filters.make_attrgetter(environment, attribute), value)
    return joined_by(tracked_text(d), map(tracked_text, value))


def _string(value: object) -> str:
    """The filter `string`."""
    return value if isinstance(value, str) else tracked_text(value)


def _safe(value: object) -> str:
    """The filter `safe`, which changes a text only where it is added to others, as it would be escaped; that shows."""
    return value if isinstance(value, Tracked) else Markup(value)  # noqa: S704 - as the filter does it


def _segments(pieces: Sequence[str], marks: Sequence[int | None]) -> list[Segment]:
    segments: list[Segment] = []
    start = end = first_run = last_run = 0
    turn: int | None = None
    for piece, mark in zip(pieces, marks, strict=True):
        runs = [run for run in runs_of(piece) if run.source != _GENERATION]
        if mark != turn and (piece or runs):
            segments.append(Segment(start, end, turn, first_run, last_run))
            start, first_run, turn = end, last_run, mark
        end += len(piece)
        last_run += len(runs)
    segments.append(Segment(start, end, turn, first_run, last_run))
    return [segment for segment in segments if segment.end > segment.start or segment.last_run > segment.first_run]


def track(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    *,
    change: Callable[[Source], str] | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None, list[Source]]:
    """Messages and tools with tracked strings.

    Args:
        messages: Messages as `template_messages` makes them.
        tools: Tool definitions.
        change: Gives the text that takes the place of a string's own, as long as that; None keeps them.

    Returns:
        Messages and tools of the same form, and the sources that the runs of their strings name.
    """
    sources: list[Source] = []

    def tracked(text: str, turn: int | None, field: str) -> Tracked:
        source = Source(turn, field, text)
        new = change(source) if change else text
        sources.append(Source(turn, field, new))
        return Tracked(new, [Run(0, len(new), len(sources) - 1, 0, len(new), EXACT)])

    def deep(value: Any, turn: int | None, field: str) -> Any:
        if isinstance(value, str):
            return tracked(value, turn, field)
        if isinstance(value, list):
            return [deep(item, turn, field) for item in value]
        if isinstance(value, dict):
            return {tracked(key, turn, "key"): deep(item, turn, field) for key, item in value.items()}
        return value

    result = [_tracked_message(message, turn, tracked, deep) for turn, message in enumerate(messages)]
    return result, None if tools is None else [deep(tool, None, "tool") for tool in tools], sources


def _tracked_message(
    message: Mapping[str, Any], turn: int, tracked: Callable[..., Tracked], deep: Callable[..., Any]
) -> dict[str, Any]:
    result = dict(message)
    content = result["content"]
    if isinstance(content, str):
        result["content"] = tracked(content, turn, "content")
    elif content is not None:
        result["content"] = [{**part, "text": tracked(part["text"], turn, "content")} for part in content]
    if "reasoning_content" in result:
        result["reasoning_content"] = result["thinking"] = tracked(result["reasoning_content"], turn, "reasoning")
    for key, field in (("tool_call_id", "id"), ("name", "name")):
        if key in result:
            result[key] = tracked(result[key], turn, field)
    if "tool_calls" in result:
        result["tool_calls"] = [
            {
                "type": call["type"],
                "function": {
                    "name": tracked(call["function"]["name"], turn, "call"),
                    "arguments": deep(call["function"]["arguments"], turn, "arguments"),
                },
                **({"id": tracked(call["id"], turn, "id")} if "id" in call else {}),
            }
            for call in result["tool_calls"]
        ]
    return result
