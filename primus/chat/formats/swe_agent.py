# SPDX-License-Identifier: Apache-2.0
"""SWE-agent trajectories: one object with `history` (what the model read and wrote) and `trajectory` (the steps).

The history is the conversation: an assistant's `content` is the whole answer, of which `thought` and `action` are the
parts. Demonstrations (`is_demo`) are context and not trained.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from primus.chat.formats.message_reading import OPENAI, read_message, require_list
from primus.chat.formats.notes import Notes
from primus.chat.formats.options import SourceOptions
from primus.chat.formats.tools import read_tools
from primus.chat.messages import Conversation, Message
from primus.errors import ConversationError

FIELD = "history"


def recognises(row: object, options: SourceOptions) -> bool:
    """Whether a row has a history of messages and a trajectory, or what became of it."""
    del options
    if not isinstance(row, Mapping) or ("trajectory" not in row and "info" not in row):
        return False
    history = row.get(FIELD)
    return isinstance(history, list | tuple) and bool(history) and isinstance(history[0], Mapping)


def parse(row: Any, origin: str, options: SourceOptions) -> tuple[Conversation, ...]:
    """Read a trajectory as one conversation."""
    notes = Notes(origin, options)
    tools = read_tools(row, notes)
    items = require_list(row.get(FIELD), FIELD, origin)
    agents = {str(agent) for item in items if isinstance(item, Mapping) and (agent := item.get("agent")) is not None}
    if len(agents) > 1:
        raise ConversationError(
            f"{origin}: history has the turns of several agents ({', '.join(sorted(agents))!r:.100}), so it is not one"
            " conversation; write one row per agent",
            reason="several_agents",
        )
    messages = [_read(item, notes, f"{origin}: turn {turn}") for turn, item in enumerate(items)]
    notes.ignore_others(row, (FIELD, "tools", "functions"))
    return (notes.conversation(messages, tools=tools),)


def _read(item: object, notes: Notes, place: str) -> Message:
    if not isinstance(item, Mapping):
        return read_message(item, notes, place)
    fields = dict(item)
    is_demo = fields.pop("is_demo", None)
    answered = fields.pop("tool_call_ids", None)
    if isinstance(answered, list | tuple) and len(answered) == 1 and fields.get("tool_call_id") is None:
        fields["tool_call_id"] = answered[0]
    elif answered:
        raise ConversationError(
            f"{place}: answers several calls at once (tool_call_ids); write one message per call", reason="tool_call_id"
        )
    message = read_message(fields, notes, place, dialect=OPENAI)
    if is_demo and message.role == "assistant" and message.weight is None:
        return replace(message, weight=0.0)
    return message
