# SPDX-License-Identifier: Apache-2.0
"""Any Hugging Face chat template as a conversation format."""

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from threading import RLock
from typing import Any, NoReturn

from primus.chat.messages import Conversation, Message
from primus.errors import RenderError
from primus.sft.formatters.rendered import RenderedConversation
from primus.sft.formatters.template.agreement import check_generations
from primus.sft.formatters.template.conversion import MessageForm, template_messages, template_tools
from primus.sft.formatters.template.environment import ChatTemplate, template_variables
from primus.sft.formatters.template.followed import follows_everything
from primus.sft.formatters.template.leaks import WRITTEN_FIELDS, LetterShift, is_compared, leaked, uncovered
from primus.sft.formatters.template.origin import EXACT
from primus.sft.formatters.template.shape import find_form, find_shape
from primus.sft.formatters.template.spans import SpanFinder, markers, turn_spans
from primus.sft.formatters.template.tracking import Source, TrackedRender, TrackedTemplate, track

logger = logging.getLogger(__name__)

# What chat markers look like, for templates without a tokenizer.
_SPELLED = re.compile(
    r"<[|\uff5c][^<>]{1,80}?[|\uff5c]>|</?s>|<(?:pad|unk|bos|eos|start_of_turn|end_of_turn)>|\[/?(?:INST|SYSTEM_PROMPT)\]"
)


class TemplateFormatter:
    """Renders conversations with a chat template, and finds what the assistant wrote in the text that comes out.

    A conversation is rendered once as it is, once with strings that carry their origin, and a third time with changed
    letters where the template left something out or a message spells a control token.

    Args:
        source: The text of the template.
        origin: Where it came from, for messages.
        control_tokens: The tokenizer's control tokens; None takes what looks like one.
        special_tokens: Texts of the tokenizer's special tokens by name: `bos_token`, `eos_token` and so on.
        variables: What else the template is given, such as `enable_thinking`.
        now: What the template's clock shows; None takes the beginning of the present day.

    Attributes:
        num_renders: Renders so far, apart from those of a few words with which the template is got to know.

    Raises:
        ConfigError: If the template is no valid Jinja.
    """

    writes_bos = True
    is_turn_by_turn = False

    def __init__(
        self,
        source: str,
        *,
        origin: str = "chat template",
        control_tokens: Iterable[str] | None = None,
        special_tokens: Mapping[str, str] | None = None,
        variables: Mapping[str, Any] | None = None,
        now: datetime | None = None,
    ) -> None:
        self.source = source
        self._options = {
            "origin": origin,
            "control_tokens": None if control_tokens is None else tuple(control_tokens),
            "special_tokens": dict(special_tokens or {}),
            "variables": dict(variables or {}),
        }
        self._special_tokens: Mapping[str, str] = dict(special_tokens or {})
        self._variables: Mapping[str, Any] = dict(variables or {})
        self._controls = _pattern(control_tokens)
        self._plain = ChatTemplate(source, origin=origin, now=now)
        self._tracked = TrackedTemplate(source, origin=origin, now=self._plain.now)
        self._shift = LetterShift(source, environment=self._plain.environment, controls=self._controls)
        self._follows_everything = follows_everything(self._plain.environment.parse(source))
        self._lock = RLock()
        self.num_renders = 0
        self._form = find_form(self._probe_form)
        self._shape = find_shape(self._probe, self._probe_tracked)
        self._finder = SpanFinder(self._shape, controls=self._controls)
        found = [match.group() for match in self._controls.finditer(self._shape.sample)]
        words = [tail for tail in self._shape.tails if self._controls.search(tail) is None]
        self.control_markers: tuple[str, ...] = tuple(dict.fromkeys([*found, *words]))
        self.num_renders = 0
        if not self._shape.tails:
            logger.warning("%s: writes nothing where an assistant turn ends, so no end of turn is trained", origin)

    @property
    def end_of_turn(self) -> str:
        """The text that a model writes to stop, as far as the template has one."""
        tail = self._shape.last_tail
        controls = self._controls.findall(tail)
        return controls[-1] if controls else tail

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.source, self._plain.now, self._options)

    def _probe_form(self, messages: Sequence[Message], form: MessageForm) -> str:
        self._form = form
        return self._probe(messages)

    def _probe(self, messages: Sequence[Message]) -> str:
        return self._render_plain(_Request(messages, None, "probe"))

    def _probe_tracked(self, messages: Sequence[Message], is_prompt: bool) -> TrackedRender:  # noqa: FBT001
        return self._render_tracked(_Request(messages, None, "probe", is_prompt))

    def render(self, conversation: Conversation) -> RenderedConversation:
        """Render a conversation.

        Args:
            conversation: The conversation.

        Returns:
            What `apply_chat_template` of transformers writes, with what the assistant wrote in it.

        Raises:
            RenderError: If the template refuses the conversation (reason `template`), leaves out what the assistant
                says (`no_form`), or what it does with a message can't be told with certainty (`template_spans`).
        """
        request = _Request(conversation.messages, template_tools(conversation), conversation.origin)
        with self._lock:
            render = self._followed(request)
        origin = conversation.origin
        spans = self._finder.find(render, conversation.messages, origin=origin)
        if not spans:
            raise RenderError(
                f"{origin}: the chat template writes nothing of what the assistant says; use another template",
                reason="no_form",
            )
        check_generations(render, spans, origin=origin)
        return RenderedConversation(render.text, spans, markers(render, self._controls), turn_spans(render))

    def render_prompt(self, conversation: Conversation, turn: int) -> RenderedConversation:
        """Render what a server gives the model: the messages before a turn, and the generation prompt."""
        if conversation.messages[turn].role != "assistant":
            raise ValueError(f"turn {turn} is not the assistant's")
        request = _Request(
            conversation.messages[:turn], template_tools(conversation), conversation.origin, is_prompt=True
        )
        with self._lock:
            render = self._followed(request)
        return RenderedConversation(render.text, (), markers(render, self._controls), turn_spans(render))

    def _followed(self, request: "_Request") -> TrackedRender:
        """A render of which every run is known to be right."""
        text = self._render_plain(request)
        render = self._render_tracked(request)
        if render.text != text or not all(
            run.kind != EXACT or text[run.start : run.end] == render.sources[run.source].text[run.first : run.last]
            for run in render.runs
        ):
            _refuse(request.origin, "it does something else with strings that are followed than with others")
        self._compare(render, request)
        return render

    def _compare(self, render: TrackedRender, request: "_Request") -> None:
        """Look for copies that no run tells of, where there can be some that matter.

        These are copies of what the assistant wrote, if not all of it is in the text, and of strings that spell control
        tokens, which would stand in the text as if the template had written them. A template that uses what can lose
        origins is looked at with everything changed that anybody says.
        """
        if not self._follows_everything:
            changed = self._render_tracked(request, change=lambda source: self._shift(source.text))
            if leaked(render, changed):
                _refuse(
                    request.origin, "it copies text by a way that can't be followed, or its words depend on the text"
                )
        is_assistant = [message.role == "assistant" for message in request.messages]

        def is_written(source: Source) -> bool:
            return source.turn is not None and is_assistant[source.turn] and source.field in WRITTEN_FIELDS

        missing = [source for source in map(render.sources.__getitem__, uncovered(render)) if is_written(source)]
        if not missing and not any(self._controls.search(source.text) for source in render.sources):
            return
        said = [source.text for source in missing if source.field in {"content", "reasoning"}]
        if any(self._shift(text) == text and any(map(str.isalnum, text)) for text in said):
            _refuse(request.origin, "it leaves out a text that is a word of its own")
        changed = self._render_tracked(
            request,
            change=lambda source: (
                self._shift(source.text)
                if is_written(source) or is_compared(source) or self._controls.search(source.text)
                else source.text
            ),
        )
        if leaked(render, changed):
            _refuse(request.origin, "it copies text by a way that can't be followed, or its words depend on the text")

    def _render_plain(self, request: "_Request") -> str:
        self.num_renders += 1
        variables = self._given(request, request.to_messages(self._form), request.tools)
        return self._plain.render(variables, origin=request.origin)

    def _render_tracked(self, request: "_Request", *, change: Callable[[Source], str] | None = None) -> TrackedRender:
        self.num_renders += 1
        messages, tools, sources = track(request.to_messages(self._form), request.tools, change=change)
        return self._tracked.render(self._given(request, messages, tools), sources, origin=request.origin)

    def _given(self, request: "_Request", messages: Sequence[Any], tools: Sequence[Any] | None) -> dict[str, Any]:
        return template_variables(
            messages,
            tools=tools,
            add_generation_prompt=request.is_prompt,
            special_tokens=self._special_tokens,
            more=self._variables,
        )


@dataclass(frozen=True, slots=True)
class _Request:
    """What is to be rendered."""

    messages: Sequence[Message]
    tools: Sequence[dict[str, Any]] | None
    origin: str
    is_prompt: bool = False

    def to_messages(self, form: MessageForm) -> list[dict[str, Any]]:
        return template_messages(self.messages, form=form)


def _restored(source: str, now: datetime, options: Mapping[str, Any]) -> TemplateFormatter:
    return TemplateFormatter(source, now=now, **options)


def _pattern(control_tokens: Iterable[str] | None) -> re.Pattern[str]:
    if control_tokens is None:
        return _SPELLED
    longest_first = sorted(control_tokens, key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _refuse(origin: str, why: str) -> NoReturn:
    raise RenderError(
        f"{origin}: what the assistant wrote can't be told from what the chat template wrote ({why}); use another"
        " template, or drop the row",
        reason="template_spans",
    )
