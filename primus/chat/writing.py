# SPDX-License-Identifier: Apache-2.0
"""Conversations written as rows of OpenAI messages, which read as the same conversations."""

import json
from typing import Any

from primus.chat.messages import Conversation, Message, ToolCall


def to_row(conversation: Conversation) -> dict[str, Any]:
    """A conversation as a row of OpenAI messages.

    Args:
        conversation: The conversation.

    Returns:
        `messages`, and `tools` if there are any, in a fixed order of keys and without empty ones. Arguments of calls
        are JSON text. `parse_conversation` reads the row as an equal conversation, and writing that one gives the same
        row: `json.dumps(row, ensure_ascii=False)` is the same text again. Keys that OpenAI does not have stand only
        where the source had something to say: `reasoning_content`, and `input_start` of a single-turn row.

    Examples:
        >>> from primus.chat.parse import parse_conversation
        >>> to_row(parse_conversation({"question": "2 + 2?", "answer": "4"}))
        {'messages': [{'role': 'user', 'content': '2 + 2?'}, {'role': 'assistant', 'content': '4'}]}
    """
    row: dict[str, Any] = {"messages": [_message(message) for message in conversation.messages]}
    if conversation.tools:
        row["tools"] = [json.loads(tool) for tool in conversation.tools]
    return row


def _message(message: Message) -> dict[str, Any]:
    written: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name is not None:
        written["name"] = message.name
    if message.reasoning is not None:
        written["reasoning_content"] = message.reasoning
    if message.tool_calls:
        written["tool_calls"] = [_call(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        written["tool_call_id"] = message.tool_call_id
    if message.weight is not None:
        # OpenAI's weights are whole numbers.
        written["weight"] = int(message.weight) if message.weight.is_integer() else message.weight
    if message.input_start is not None:
        written["input_start"] = message.input_start
    return written


def _call(call: ToolCall) -> dict[str, Any]:
    written: dict[str, Any] = {} if call.id is None else {"id": call.id}
    return {**written, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
