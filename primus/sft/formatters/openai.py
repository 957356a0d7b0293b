# SPDX-License-Identifier: Apache-2.0
r"""ChatML: every message as `<|im_start|>role\ncontent<|im_end|>\n`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from primus.chat.messages import ROLES, Conversation, Message
from primus.chat.parse import parse_message, single_turn
from primus.errors import ConversationError
from primus.sft.formatters.flat_texts import Frame, PlainFrames
from primus.sft.formatters.rendered import RenderedConversation, TextBatch, TextBuilder

IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
_MARKERS = [IM_START, IM_END]
_HEADER_CHARS = len(IM_START) + 1
_END_CHARS = len(IM_END)

# The text that Qwen2.5's chat template puts into the system turn of a conversation with tools.
_TOOLS_HEAD = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_TOOLS_TAIL = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within"
    " <tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)


class OpenAIMessagesFormatter:
    """Renders messages as ChatML, turn by turn, with nothing stripped, added or moved.

    An assistant turn with tool calls continues, after its content, with what Hermes and Qwen models are trained to
    write: a `<tool_call>` element per call, each on lines of its own. Tool definitions stand at the end of the system
    turn, in Qwen2.5's words. Reasoning stands in a `<think>` element before the content, as in Qwen3.
    `chatml.jinja` beside this module is the same rule as a chat template.
    """

    control_markers = (IM_START, IM_END)
    writes_bos = False
    is_turn_by_turn = True
    plain_frames = PlainFrames({role: Frame(f"{IM_START}{role}\n", ((0, IM_START),), IM_END, "\n") for role in ROLES})

    def format_messages(self, messages: Sequence[Mapping[str, Any] | Message]) -> tuple[str, list[tuple[int, int]]]:
        r"""Render messages, and say where the assistant's words are.

        Args:
            messages: Messages of the OpenAI format, or `Message` objects.

        Returns:
            The text, and for every assistant message `[start, end)` in characters: `text[start:end]` is its content
            (with its tool calls and reasoning, if it has any), without the header and without `<|im_end|>`.

        Raises:
            ConversationError: If a message is not valid, or there are none.

        Examples:
            >>> text, spans = OpenAIMessagesFormatter().format_messages(
            ...     [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}])
            >>> text
            '<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n'
            >>> spans, text[52:57]
            ([(52, 57)], 'Hello')
        """
        parsed = tuple(
            m if isinstance(m, Message) else parse_message(m, place=f"messages: turn {turn}")
            for turn, m in enumerate(messages)
        )
        if not parsed:
            raise ConversationError("messages: there are no messages; give at least one", reason="empty")
        rendered = _render(parsed, tools=())
        return rendered.text, [(span.start, span.end) for span in rendered.spans if span.kind == "content"]

    def format_conversation(
        self, instruction: str, response: str, input_text: str | None = None, system_prompt: str | None = None
    ) -> tuple[str, list[tuple[int, int]]]:
        """Render one instruction and its response as `format_messages` does.

        Args:
            instruction: What the user asks.
            response: What the assistant answers.
            input_text: Material for the instruction; not empty, it follows after a blank line.
            system_prompt: A system message, unless None or empty.

        Returns:
            The text, and the characters `[start, end)` of the response in a list of one.

        Raises:
            ConversationError: If a text cannot be encoded.
        """
        conversation = single_turn(instruction, response, input_text=input_text, system_prompt=system_prompt)
        return self.format_messages(conversation.messages)

    def render(self, conversation: Conversation) -> RenderedConversation:
        """Render a conversation; every conversation has a form in ChatML."""
        return _render(conversation.messages, tools=conversation.tools)

    def render_into(self, conversation: Conversation, batch: TextBatch) -> None:
        """Render a conversation beside others."""
        if conversation.tools:
            batch.add(self.render(conversation))
            return
        pieces: list[str] = []
        at, num_answers = 0, 0
        for turn, message in enumerate(conversation.messages):
            role, content = message.role, message.content
            start = at + _HEADER_CHARS + len(role)
            if role == "assistant":
                if message.tool_calls or message.reasoning:
                    content = assistant_text(message)
                end = start + len(content)
                weight = 1.0 if message.weight is None else message.weight
                num_answers += 1
                batch.edges += (start, end, end, end + _END_CHARS)
                batch.turns += (turn, turn)
                batch.is_end += (False, True)
                batch.weights += (weight, weight)
            else:
                end = start + len(content)
            pieces.append(f"{IM_START}{role}\n{content}{IM_END}\n")
            batch.markers += (at, end)
            at = end + _END_CHARS + 1
        batch.words += _MARKERS * len(conversation.messages)
        batch.end_text("".join(pieces), num_markers=2 * len(conversation.messages), num_spans=2 * num_answers)

    def render_prompt(self, conversation: Conversation, turn: int) -> RenderedConversation:
        """Render the messages before an assistant turn and the header of the answer."""
        prompt = _render(conversation.messages[:turn], tools=conversation.tools, is_prompt=True)
        return replace(prompt, spans=())


def _render(messages: Sequence[Message], *, tools: Sequence[str], is_prompt: bool = False) -> RenderedConversation:
    out = TextBuilder()
    if tools and (not messages or messages[0].role != "system"):
        _write(out, "system", with_tools("", tools))
    for turn, message in enumerate(messages):
        start = out.length
        if message.role == "assistant":
            _header(out)
            weight = 1.0 if message.weight is None else message.weight
            out.span(out.text(assistant_text(message)), kind="content", turn=turn, weight=weight)
            out.span(out.marker(IM_END), kind="end_of_turn", turn=turn, weight=weight)
            out.text("\n")
        else:
            first_system = turn == 0 and message.role == "system"
            content = with_tools(message.content, tools) if tools and first_system else message.content
            _write(out, message.role, content)
        out.end_turn(start, turn)
    if is_prompt:
        _header(out)
    return out.build()


def _header(out: TextBuilder) -> None:
    out.marker(IM_START)
    out.text("assistant\n")


def _write(out: TextBuilder, role: str, content: str) -> None:
    out.marker(IM_START)
    out.text(f"{role}\n{content}")
    out.marker(IM_END)
    out.text("\n")


def with_tools(system: str, tools: Sequence[str]) -> str:
    """A system turn that says which tools there are, in Qwen2.5's words.

    Args:
        system: What the turn says besides; empty if nothing.
        tools: Definitions of the tools, as JSON text.

    Returns:
        Its text.
    """
    head = f"{system}\n\n{_TOOLS_HEAD}" if system else _TOOLS_HEAD
    return head + "".join(f"\n{tool}" for tool in tools) + _TOOLS_TAIL


def assistant_text(message: Message) -> str:
    """Everything that the assistant writes in one turn: reasoning, content, tool calls.

    Args:
        message: An assistant message.

    Returns:
        The text between the header and the end of the turn.

    Examples:
        >>> from primus.chat.messages import ToolCall
        >>> print(assistant_text(Message("assistant", "One moment.", tool_calls=(ToolCall("now", "{}"),))))
        One moment.
        <tool_call>
        {"name": "now", "arguments": {}}
        </tool_call>
    """
    if not message.tool_calls and not message.reasoning:
        return message.content
    parts = [f"<think>\n{message.reasoning}\n</think>\n\n"] if message.reasoning else []
    parts.append(message.content)
    calls = "\n".join(f"<tool_call>\n{call.to_json()}\n</tool_call>" for call in message.tool_calls)
    if calls and message.content:
        parts.append("\n")
    return "".join([*parts, calls])
