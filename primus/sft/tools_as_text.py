# SPDX-License-Identifier: Apache-2.0
"""Conversations with tools as plain text messages, for trainers that know no tools.

What is trained is what the ChatML of this project trains: definitions stand at the end of the system message, and a
call stands behind the assistant's content as a `<tool_call>` element. An answer becomes a user message with a
`<tool_response>` element, as in Qwen2.5's template; answers that follow each other share one message.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from primus.chat.messages import Conversation, Message
from primus.sft.formatters.openai import assistant_text, with_tools


def render_tools(conversation: Conversation) -> Conversation:
    r"""Write definitions, calls and answers of tools into the contents of messages.

    Args:
        conversation: Any conversation.

    Returns:
        The conversation without tools, calls and tool messages; the same one if it has none. Reasoning and the weights
        of assistant messages are kept. Names of tools and the ids of calls are not written.

    Examples:
        >>> from primus.chat.messages import ToolCall
        >>> call = Message("assistant", "", tool_calls=(ToolCall("now", "{}"),))
        >>> rendered = render_tools(Conversation((Message("user", "When?"), call, Message("tool", "12:00"))))
        >>> [message.content for message in rendered.messages[1:]]
        ['<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>', '<tool_response>\n12:00\n</tool_response>']
    """
    has_tools = conversation.tools or any(m.role == "tool" or m.tool_calls for m in conversation.messages)
    if not has_tools:
        return conversation
    messages = list(_messages(conversation.messages))
    if conversation.tools:
        has_system = messages[0].role == "system"
        system = messages.pop(0) if has_system else Message("system", "")
        messages.insert(0, replace(system, content=with_tools(system.content, conversation.tools)))
    return replace(conversation, messages=tuple(messages), tools=())


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
