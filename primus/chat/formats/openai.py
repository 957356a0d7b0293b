# SPDX-License-Identifier: Apache-2.0
"""OpenAI messages: `{"messages": [{"role": ..., "content": ...}, ...], "tools": [...]}`, or the bare list."""

from collections.abc import Mapping
from typing import Any

from primus.chat.formats.message_reading import SYSTEM_FIELDS, read_messages
from primus.chat.formats.notes import Notes
from primus.chat.formats.options import SourceOptions
from primus.chat.formats.tools import read_tools
from primus.chat.formats.values import only_string
from primus.chat.messages import Conversation


def recognises(row: object, options: SourceOptions) -> bool:
    """Whether a row has a field with messages, or is a list of messages."""
    if isinstance(row, Mapping):
        field = messages_field(row, options)
        return field is not None and not is_sharegpt(row[field])
    return isinstance(row, list | tuple) and bool(row) and isinstance(row[0], Mapping) and not is_sharegpt(row)


def is_sharegpt(messages: object) -> bool:
    """Whether a list of messages says `from` where OpenAI says `role`."""
    first = messages[0] if isinstance(messages, list | tuple) and messages else None
    return isinstance(first, Mapping) and "from" in first and "role" not in first


def messages_field(row: Mapping[str, Any], options: SourceOptions) -> str | None:
    """The first of the messages fields that a row has."""
    for name in options.messages_fields:
        if row.get(name) is not None:
            return name
    return None


def parse(row: Any, origin: str, options: SourceOptions) -> tuple[Conversation, ...]:
    """Read a row of messages as one conversation."""
    notes = Notes(origin, options)
    if not isinstance(row, Mapping):
        return (notes.conversation(read_messages(row, "the row", notes)),)
    field = messages_field(row, options) or options.messages_fields[0]
    tools = read_tools(row, notes)
    messages = read_messages(row.get(field), field, notes, system=only_string(row, SYSTEM_FIELDS, origin))
    if len(row) > 1:
        notes.ignore_others(row, (field, "tools", "functions", *SYSTEM_FIELDS))
    return (notes.conversation(messages, tools=tools),)
