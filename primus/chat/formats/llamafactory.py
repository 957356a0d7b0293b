# SPDX-License-Identifier: Apache-2.0
"""LLaMA-Factory's second version: messages whose content is a list of `{"type": ..., "value": ...}`, and `loss_weight`.

Source of the names: LLaMA-Factory, `src/llamafactory/v1/utils/types.py`.
"""

from collections.abc import Mapping
from typing import Any

from primus.chat.formats.message_reading import (
    OPENAI,
    SYSTEM_FIELDS,
    read_role_name,
    refuse_bad_answer,
    require_list,
    role_of,
    with_system,
)
from primus.chat.formats.notes import Notes
from primus.chat.formats.openai import messages_field
from primus.chat.formats.options import SourceOptions
from primus.chat.formats.ordered_parts import OrderedParts, has_typed_parts
from primus.chat.formats.tools import calls_of_text, read_tools
from primus.chat.formats.values import only_field, only_string, optional_string, type_name
from primus.chat.formats.weights import WEIGHT_FIELDS, read_weight
from primus.chat.messages import Conversation, Message
from primus.errors import ConversationError

_TYPES = frozenset({"text", "reasoning", "tool_call"})
_CHOSEN = "chosen_messages"
_MESSAGE_FIELDS = frozenset({"role", "content", *WEIGHT_FIELDS})


def recognises(row: object, options: SourceOptions) -> bool:
    """Whether a message has a content part with a `value`."""
    if not isinstance(row, Mapping):
        return False
    field = messages_field(row, options)
    return has_typed_parts(row.get(field or _CHOSEN), types=_TYPES, key="value")


def parse(row: Any, origin: str, options: SourceOptions) -> tuple[Conversation, ...]:
    """Read a row as one conversation; of a pair of answers only the chosen one."""
    notes = Notes(origin, options)
    fields = (*options.messages_fields, _CHOSEN)
    field = only_field(row, fields, origin) or fields[0]
    tools = read_tools(row, notes, wrap=True)
    items = require_list(row.get(field), field, origin)
    messages = [_read(message, notes, f"{origin}: turn {turn}") for turn, message in enumerate(items)]
    messages = with_system(messages, only_string(row, SYSTEM_FIELDS, origin), origin)
    notes.ignore_others(row, (field, "tools", "functions", *SYSTEM_FIELDS))
    return (notes.conversation(messages, tools=tools),)


def _read(message: object, notes: Notes, place: str) -> Message:
    if not isinstance(message, Mapping):
        raise ConversationError(
            f"{place}: is a {type_name(message)}, not an object with role and content; repair the row",
            reason="not_an_object",
        )
    name = read_role_name(message, OPENAI, place)
    role = role_of(name, notes, OPENAI)
    place = f"{place} ({name})" if role is not None else place
    notes.ignore_others(message, _MESSAGE_FIELDS | refuse_bad_answer(message, role, place))
    content = message.get("content")
    if not isinstance(content, list | tuple):
        raise ConversationError(
            f"{place}: content is a {type_name(content)}, not a list of parts with type and value; repair the row",
            reason="content",
        )
    parts = OrderedParts(place)
    for i, part in enumerate(content):
        _add(part, parts, notes, f"{place}: content[{i}]")
    weight = read_weight(message, place)
    return parts.message(role or name, weight=weight)


def _add(part: object, parts: OrderedParts, notes: Notes, place: str) -> None:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(part, Mapping) or not isinstance(kind, str) or kind not in _TYPES:
        found = f"a part of type {kind!r:.60}" if isinstance(part, Mapping) else f"a {type_name(part)}"
        raise ConversationError(
            f'{place}: is {found}, not {{"type": {"|".join(sorted(_TYPES))}, "value": ...}}; only text can be trained'
            " here",
            reason="content_part",
        )
    notes.ignore_others(part, ("type", "value"), prefix="content.")
    value = optional_string(part, "value", place)
    if value is None:
        raise ConversationError(f"{place}: has no value; write a text, empty if you mean it", reason="content")
    if kind == "text":
        parts.add_text(value)
    elif kind == "reasoning":
        parts.add_reasoning(value)
    else:
        for call in calls_of_text(value, notes, place):
            parts.add_call(call)
