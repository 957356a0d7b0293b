# SPDX-License-Identifier: Apache-2.0
"""ShareGPT: `{"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}], "system", "tools"}`.

Dialects: the list stands in `conversations`, `conversation` or the field of messages, or is the row itself; a message
has `from` or `role`, and `value`, `content` or `text`; a `function_call` is JSON text; ms-swift writes pairs
`{"human": ..., "assistant": ...}`.
"""

from collections.abc import Mapping
from typing import Any

from primus.chat.formats.flags import read_shared_weight, refuse_rejected, weighted
from primus.chat.formats.message_reading import (
    OPENAI_ROLES,
    SYSTEM_FIELDS,
    Dialect,
    read_messages,
    require_list,
    with_system,
)
from primus.chat.formats.notes import Notes
from primus.chat.formats.openai import is_sharegpt, messages_field
from primus.chat.formats.options import FUNCTION_CALL, SourceOptions
from primus.chat.formats.tools import read_tools
from primus.chat.formats.values import only_field, only_string, optional_string, type_name
from primus.chat.formats.weights import WEIGHT_FIELDS
from primus.chat.messages import Conversation, Message
from primus.errors import ConversationError

FIELDS = ("conversations", "conversation")
ROLES = {
    **OPENAI_ROLES,
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "model", "bot", "ai"), "assistant"),
    **dict.fromkeys(("observation", "tool_response", "function_response", "ipython"), "tool"),
    **dict.fromkeys((FUNCTION_CALL, "tool_call"), FUNCTION_CALL),
}
DIALECT = Dialect(("from", "role"), ("value", "content", "text"), ROLES, any_case=True)
_PAIR = frozenset({"human", "assistant"})


def recognises(row: object, options: SourceOptions) -> bool:
    """Whether a row has a list of such messages, or is one."""
    if not isinstance(row, Mapping):
        return is_sharegpt(row)
    if any(row.get(field) is not None and not _is_of_another(row[field]) for field in FIELDS):
        return True
    field = messages_field(row, options)
    return field is not None and is_sharegpt(row[field])


def _is_of_another(messages: object) -> bool:
    """Whether the list is one of XTuner or of ToolTalk, which stand in a field of the same name."""
    first = messages[0] if isinstance(messages, list | tuple) and messages else None
    if not isinstance(first, Mapping):
        return False
    return "output" in first or (
        "text" in first and any(isinstance(m, Mapping) and "apis" in m for m in messages)  # type: ignore[attr-defined]  # a list
    )


def parse(row: Any, origin: str, options: SourceOptions) -> tuple[Conversation, ...]:
    """Read a row as one conversation."""
    notes = Notes(origin, options)
    if not isinstance(row, Mapping):
        return (notes.conversation(read_messages(row, "the row", notes, dialect=DIALECT)),)
    field = only_field(row, FIELDS, origin) or messages_field(row, options) or FIELDS[0]
    _refuse_trained_users(row, notes)
    tools = read_tools(row, notes, wrap=True)
    system = only_string(row, SYSTEM_FIELDS, origin)
    items = require_list(row.get(field), field, origin)
    if items and isinstance(items[0], Mapping) and items[0].keys() >= _PAIR:
        messages = with_system(_pairs(items, notes), system, origin)
    else:
        messages = read_messages(items, field, notes, dialect=DIALECT, system=system)
    notes.ignore_others(row, (field, "tools", "functions", *SYSTEM_FIELDS))
    return (notes.conversation(messages, tools=tools),)


def _pairs(pairs: Any, notes: Notes) -> list[Message]:
    messages: list[Message] = []
    for i, pair in enumerate(pairs):
        place = f"{notes.origin}: pair {i}"
        if not isinstance(pair, Mapping):
            raise ConversationError(
                f"{place}: is a {type_name(pair)}, not an object with human and assistant; repair the row",
                reason="not_an_object",
            )
        notes.ignore_others(pair, _PAIR.union(WEIGHT_FIELDS, refuse_rejected(pair, place)))
        weight = read_shared_weight(pair, place)
        for name, role in (("human", "user"), ("assistant", "assistant")):
            text = optional_string(pair, name, place)
            if text is None:
                raise ConversationError(f"{place}: {name} is missing; write a text, empty if you mean it",
                                        reason="content")  # fmt: skip
            try:
                messages.append(weighted(Message(role, text), weight))  # type: ignore[arg-type]  # one of the four
            except ConversationError as exc:
                raise ConversationError(f"{place}: {exc}", reason=exc.reason) from exc
    return messages


def _refuse_trained_users(row: Mapping[str, Any], notes: Notes) -> None:
    """Refuse a row whose `mask` (as in NeMo) names the assistant as the one who is not trained."""
    mask = row.get("mask")
    if isinstance(mask, str) and (notes.options.roles.get(mask) or ROLES.get(mask.lower())) == "assistant":
        raise ConversationError(
            f"{notes.origin}: mask is {mask!r}, so the turns of the assistant are not trained; drop the row, or swap"
            " the roles",
            reason="mask",
        )
