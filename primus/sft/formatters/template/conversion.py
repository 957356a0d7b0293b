# SPDX-License-Identifier: Apache-2.0
"""From a conversation to what chat templates read: messages and tools as plain JSON values."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from primus.chat.messages import Conversation, Message


@dataclass(frozen=True, slots=True)
class MessageForm:
    """How a template wants what messages hold; templates differ, and fail or print nothing on another form.

    Attributes:
        content_as_parts: Content as a list of `{"type": "text", "text": ...}`, and not as a string.
        arguments_as_text: Arguments of tool calls as JSON text, as the API of OpenAI has them, and not as an object.
        null_content: The content of a message with nothing but tool calls as null, and not as an empty string.
    """

    content_as_parts: bool = False
    arguments_as_text: bool = False
    null_content: bool = False


PLAIN_FORM = MessageForm()


def template_messages(messages: Sequence[Message], *, form: MessageForm = PLAIN_FORM) -> list[dict[str, Any]]:
    """Messages as chat templates read them.

    Args:
        messages: Messages of a conversation.
        form: How the template wants them.

    Returns:
        For each message its role and content, and what else it has: `reasoning_content` (also as `thinking`, which
        the templates of gpt-oss read), `tool_calls` with arguments as objects, `tool_call_id` and `name`.

    Examples:
        >>> from primus.chat.messages import ToolCall
        >>> message = Message("assistant", "", tool_calls=(ToolCall("add", '{"a": 1}', id="c1"),))
        >>> template_messages([message])[0]["tool_calls"]
        [{'type': 'function', 'function': {'name': 'add', 'arguments': {'a': 1}}, 'id': 'c1'}]
    """
    return [_message(message, form) for message in messages]


def template_tools(conversation: Conversation) -> list[dict[str, Any]] | None:
    """The tool definitions as chat templates read them, `{"type": "function", "function": {...}}`; None for none."""
    if not conversation.tools:
        return None
    tools = [json.loads(tool) for tool in conversation.tools]
    return [
        {"type": "function", "function": tool} if isinstance(tool, dict) and "function" not in tool else tool
        for tool in tools
    ]


def _message(message: Message, form: MessageForm) -> dict[str, Any]:
    result: dict[str, Any] = {"role": message.role, "content": message.content}
    if form.content_as_parts:
        result["content"] = [{"type": "text", "text": message.content}]
    if form.null_content and message.tool_calls and not message.content:
        result["content"] = None
    if message.reasoning is not None:
        result["reasoning_content"] = result["thinking"] = message.reasoning
    if message.tool_calls:
        result["tool_calls"] = [
            {
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": call.arguments if form.arguments_as_text else json.loads(call.arguments),
                },
                **({} if call.id is None else {"id": call.id}),
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        result["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        result["name"] = message.name
    return result
