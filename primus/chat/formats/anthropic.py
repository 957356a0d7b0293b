# SPDX-License-Identifier: Apache-2.0
"""Anthropic messages: content blocks `text`, `thinking`, `tool_use` and `tool_result`; `system` beside the messages.

Results of tools stand in a message of the user, in front of what the user says; they become messages of the tool.
"""

from collections.abc import Mapping
from typing import Any

from primus.chat.formats.message_reading import (
    OPENAI,
    SYSTEM_FIELDS,
    read_role_name,
    read_text_part,
    refuse_bad_answer,
    require_list,
    role_of,
    with_system,
)
from primus.chat.formats.notes import Notes
from primus.chat.formats.openai import messages_field
from primus.chat.formats.options import SourceOptions
from primus.chat.formats.ordered_parts import OrderedParts, has_typed_parts
from primus.chat.formats.tools import is_anthropic_tool, read_tools, tool_call
from primus.chat.formats.values import only_field, optional_string, type_name
from primus.chat.formats.weights import WEIGHT_FIELDS, read_weight
from primus.chat.messages import Conversation, Message
from primus.errors import ConversationError

_BLOCKS = frozenset({"tool_use", "tool_result", "thinking", "redacted_thinking"})
_MESSAGE_FIELDS = frozenset({"role", "content", *WEIGHT_FIELDS})


def recognises(row: object, options: SourceOptions) -> bool:
    """Whether messages have such blocks, the system prompt is a list of blocks, or a tool has an `input_schema`."""
    if not isinstance(row, Mapping):
        return has_typed_parts(row, types=_BLOCKS)
    field = messages_field(row, options)
    if field is None:
        return False
    tools = row.get("tools")
    return (
        isinstance(row.get("system"), list | tuple)
        or (isinstance(tools, list | tuple) and any(map(is_anthropic_tool, tools)))
        or has_typed_parts(row[field], types=_BLOCKS)
    )


def parse(row: Any, origin: str, options: SourceOptions) -> tuple[Conversation, ...]:
    """Read a row as one conversation."""
    notes = Notes(origin, options)
    if not isinstance(row, Mapping):
        row = {options.messages_fields[0]: row}
    field = messages_field(row, options) or options.messages_fields[0]
    _refuse_server_tools(row.get("tools"), notes)
    tools = read_tools({"tools": row.get("tools")}, notes)
    messages: list[Message] = []
    for turn, message in enumerate(require_list(row.get(field), field, origin)):
        messages += _read(message, notes, f"{origin}: turn {turn}")
    messages = with_system(messages, _system(row, notes), origin)
    notes.ignore_others(row, (field, "tools", *SYSTEM_FIELDS))
    return (notes.conversation(messages, tools=tools),)


def _refuse_server_tools(tools: object, notes: Notes) -> None:
    """Refuse tools without a schema; what is no list of tools is left for the next reader to refuse."""
    for i, tool in enumerate(tools if isinstance(tools, list | tuple) else ()):
        if isinstance(tool, Mapping) and tool.get("function") is None and not is_anthropic_tool(tool):
            raise ConversationError(
                f"{notes.origin}: tools[{i}]: has no input_schema, as a tool of the server has none; drop the row, or"
                " write the tool's schema",
                reason="tools",
            )


def _system(row: Mapping[str, Any], notes: Notes) -> str | None:
    name = only_field(row, SYSTEM_FIELDS, notes.origin) or SYSTEM_FIELDS[0]
    system = row.get(name)
    if system is None or isinstance(system, str):
        return system
    if not isinstance(system, list | tuple):
        raise ConversationError(
            f"{notes.origin}: {name} is a {type_name(system)}, not a string or a list of text blocks; repair the row",
            reason="system",
        )
    return "".join(read_text_part(part, notes, f"{notes.origin}: {name}[{i}]") for i, part in enumerate(system))


def _read(message: object, notes: Notes, place: str) -> list[Message]:
    """The messages that one message of the source stands for."""
    if not isinstance(message, Mapping):
        raise ConversationError(
            f"{place}: is a {type_name(message)}, not an object with role and content; repair the row",
            reason="not_an_object",
        )
    name = read_role_name(message, OPENAI, place)
    role = role_of(name, notes, OPENAI)
    place = f"{place} ({name})" if role is not None else place
    notes.ignore_others(message, _MESSAGE_FIELDS | refuse_bad_answer(message, role, place))
    if message.get("tool_calls") is not None:
        raise ConversationError(f"{place}: has tool_calls, which OpenAI messages have, beside blocks of Anthropic;"
                                " write one or the other", reason="tool_calls")  # fmt: skip
    content = message.get("content")
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(blocks, list | tuple):
        raise ConversationError(
            f"{place}: content is a {type_name(content)}, not a string or a list of blocks; repair the row",
            reason="content",
        )
    results: list[Message] = []
    parts = OrderedParts(place)
    for i, block in enumerate(blocks):
        _add(block, parts, results, notes, f"{place}: content[{i}]")
    if results and (role != "user" or parts.has_calls):
        raise ConversationError(
            f"{place}: has a tool_result, which only a message of the user has; repair the row", reason="content_part"
        )
    if results and not parts.text:
        return results
    return [*results, parts.message(role or name, weight=read_weight(message, place))]


def _add(block: object, parts: OrderedParts, results: list[Message], notes: Notes, place: str) -> None:
    kind = block.get("type") if isinstance(block, Mapping) else None
    if isinstance(block, Mapping) and kind == "thinking":
        notes.ignore_others(block, ("type", "thinking"), prefix="content.")
        parts.add_reasoning(optional_string(block, "thinking", place) or "")
    elif isinstance(block, Mapping) and kind == "tool_use":
        notes.ignore_others(block, ("type", "id", "name", "input"), prefix="content.")
        name, call_id = optional_string(block, "name", place), optional_string(block, "id", place)
        if name is None:
            raise ConversationError(f"{place}: tool_use has no name; repair the row", reason="tool_calls")
        parts.add_call(tool_call(name, block.get("input"), notes, place, call_id=call_id))
    elif isinstance(block, Mapping) and kind == "tool_result":
        if parts.text:
            raise ConversationError(
                f"{place}: a tool_result stands behind the user's text, but answers come first; repair the row",
                reason="part_order",
            )
        results.append(_result(block, notes, place))
    elif kind == "redacted_thinking":
        raise ConversationError(
            f"{place}: is redacted_thinking, whose text nobody has; drop the row, or the block to train the answer"
            " without it",
            reason="redacted_thinking",
        )
    else:
        parts.add_text(read_text_part(block, notes, place))


def _result(block: Mapping[str, Any], notes: Notes, place: str) -> Message:
    notes.ignore_others(block, ("type", "tool_use_id", "content"), prefix="content.")
    content = block.get("content")
    if isinstance(content, list | tuple):
        content = "".join(read_text_part(part, notes, f"{place}: content[{i}]") for i, part in enumerate(content))
    if content is not None and not isinstance(content, str):
        raise ConversationError(
            f"{place}: content is a {type_name(content)}, not a string or a list of text blocks; repair the row",
            reason="content",
        )
    try:
        return Message("tool", content or "", tool_call_id=optional_string(block, "tool_use_id", place))
    except ConversationError as exc:
        raise ConversationError(f"{place}: {exc}", reason=exc.reason) from exc
