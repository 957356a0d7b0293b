# SPDX-License-Identifier: Apache-2.0
"""Conversations with tools as plain text messages, for trainers that know no tools.

What is trained is what the ChatML of this project trains: definitions stand at the end of the system message, and a
call stands behind the assistant's content as a `<tool_call>` element. An answer becomes a user message with a
`<tool_response>` element, as in Qwen2.5's template; answers that follow each other share one message.

The text has no ids: which answer is that of which call, is told by their order alone. So a conversation whose answers
stand in another order than their calls can't be written as text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Final

from primus.chat.messages import Conversation, Message, ToolCall
from primus.errors import ConversationError
from primus.sft.formatters.openai import assistant_text, with_tools

TOOL_ORDER: Final = "tool_order"
"""Reason of conversations whose answers of tools can't be told apart by their order."""


def render_tools(conversation: Conversation) -> Conversation:
    r"""Write definitions, calls and answers of tools into the contents of messages.

    Args:
        conversation: Any conversation.

    Returns:
        The conversation without tools, calls and tool messages; the same one if it has none. Reasoning and the weights
        of assistant messages are kept. Names of tools and the ids of calls are not written.

    Raises:
        ConversationError: If the answers' ids, or names, say that they stand in another order than the calls, or that a
            call before theirs is not answered. The reason is `tool_order`.

    Examples:
        >>> from primus.chat.messages import ToolCall
        >>> call = Message("assistant", "", tool_calls=(ToolCall("now", "{}"),))
        >>> rendered = render_tools(Conversation((Message("user", "When?"), call, Message("tool", "12:00"))))
        >>> [message.content for message in rendered.messages[1:]]
        ['<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>', '<tool_response>\n12:00\n</tool_response>']
    """
    if not num_tool_messages(conversation):
        return conversation
    _check_order(conversation)
    messages = list(_messages(conversation.messages))
    if conversation.tools:
        has_system = messages[0].role == "system"
        system = messages.pop(0) if has_system else Message("system", "")
        messages.insert(0, replace(system, content=with_tools(system.content, conversation.tools)))
    return replace(conversation, messages=tuple(messages), tools=())


def num_tool_messages(conversation: Conversation) -> int:
    """How many messages `render_tools` writes otherwise than they stand.

    Args:
        conversation: Any conversation.

    Returns:
        Messages with calls, answers of tools, and the system message if there are definitions to be put there.
    """
    return bool(conversation.tools) + sum(m.role == "tool" or bool(m.tool_calls) for m in conversation.messages)


def _check_order(conversation: Conversation) -> None:
    calls: list[ToolCall] = []
    num_answered = 0
    is_calling = False
    for turn, message in enumerate(conversation.messages):
        if message.role != "assistant":
            is_calling = False
        if message.tool_calls:
            if not is_calling:
                num_answered = len(calls)  # nobody answers those of an earlier exchange any more
            is_calling = True
            calls += message.tool_calls
        elif message.role == "tool":
            told = _told(message, calls, num_answered)
            # Behind the answers of all calls, it is read as more of the last one.
            read_as = calls[num_answered : num_answered + 1] or calls[-1:]
            if told is not None and getattr(read_as[0], told[0]) != told[1]:
                raise ConversationError(
                    f"{conversation.origin}: turn {turn} (tool) answers the call {told[1]!r:.60}, but as text it is"
                    f" read as the answer of {getattr(read_as[0], told[0])!r:.60}; put one answer per call in the order"
                    " of the calls, or keep tools as fields (--tools keep)",
                    reason=TOOL_ORDER,
                )
            num_answered = min(num_answered + 1, len(calls))


def _told(answer: Message, calls: Sequence[ToolCall], num_answered: int) -> tuple[str, str] | None:
    """What tells the call of an answer, its id or else its name; None if there is only the order."""
    call_id, name = answer.tool_call_id, answer.name
    if call_id is not None and any(call.id == call_id for call in calls):
        return "id", call_id
    if name is not None and any(call.name == name for call in calls[num_answered:]):
        return "name", name
    return None


def _messages(messages: Sequence[Message]) -> Iterator[Message]:
    for is_tool, group in groupby(messages, key=lambda message: message.role == "tool"):
        if is_tool:
            answers = (f"<tool_response>\n{answer.content}\n</tool_response>" for answer in group)
            yield Message("user", "\n".join(answers))
            continue
        for message in group:
            if message.tool_calls:
                text = assistant_text(replace(message, reasoning=None))
                yield replace(message, content=text, tool_calls=())
            else:
                yield message
