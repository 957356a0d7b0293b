# SPDX-License-Identifier: Apache-2.0
"""Tables with a row per turn: `{"conversation_id": ..., "role": ..., "content": ...}`.

Rows of one conversation stand behind each other. A column with the number of the turn, if there is one, must not
decrease. `system` and `tools` are those of the whole conversation.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from primus.chat.formats.flags import refuse_rejected
from primus.chat.formats.message_reading import SYSTEM_FIELDS, Dialect, read_message, with_system
from primus.chat.formats.notes import Notes
from primus.chat.formats.options import SourceOptions
from primus.chat.formats.sharegpt import ROLES
from primus.chat.formats.tools import read_tools
from primus.chat.formats.values import only_string, type_name
from primus.chat.formats.weights import cell_value
from primus.chat.messages import Conversation, Message
from primus.chat.reading import Row
from primus.errors import ConversationError

ID_COLUMNS = ("conversation_id", "dialog_id", "dialogue_id", "session_id", "thread_id", "chat_id")
TURN_COLUMNS = ("turn", "turn_id", "turn_index", "turn_idx", "message_index", "index", "position")
_ROLE_COLUMNS = ("role", "from", "speaker", "sender")
_CONTENT_COLUMNS = ("content", "value", "text", "message", "utterance")
DIALECT = Dialect(_ROLE_COLUMNS, _CONTENT_COLUMNS, ROLES, any_case=True)
_SHARED = (*SYSTEM_FIELDS, "tools")


def recognises(row: object, options: SourceOptions) -> bool:
    """Whether a row has the identifier of a conversation, a role and a content."""
    if not isinstance(row, Mapping) or (options.conversation_id is None and row.keys().isdisjoint(ID_COLUMNS)):
        return False
    return (
        id_column(row, options) is not None
        and any(row.get(name) is not None for name in _ROLE_COLUMNS)
        and any(name in row for name in _CONTENT_COLUMNS)
    )


def id_column(row: Mapping[str, Any], options: SourceOptions) -> str | None:
    """The column with the identifier of the conversation."""
    names = ID_COLUMNS if options.conversation_id is None else (options.conversation_id,)
    return next((name for name in names if row.get(name) is not None), None)


def group(row: object, options: SourceOptions) -> str | None:
    """The conversation that a row is a turn of."""
    if not isinstance(row, Mapping) or not recognises(row, options):
        return None
    column = id_column(row, options)
    return None if column is None or not is_identifier(row[column]) else f"{column}={row[column]!r}"


def is_identifier(value: object) -> bool:
    """Whether a value can be the name of a conversation."""
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def parse(row: Any, origin: str, options: SourceOptions) -> tuple[Conversation, ...]:
    """Refuse a row that stands alone."""
    column = id_column(row, options) if isinstance(row, Mapping) else None
    if column is not None and not is_identifier(row[column]):
        raise not_an_identifier(row[column], column, origin)
    if column is not None:
        raise ConversationError(
            f"{origin}: the row is one turn of a conversation; read the file with read_conversations, which joins the"
            " rows",
            reason="part_of_a_conversation",
        )
    names = " or ".join(ID_COLUMNS if options.conversation_id is None else (options.conversation_id,))
    raise ConversationError(
        f"{origin}: the row does not say which conversation it belongs to; name the column {names}", reason="fields"
    )


def not_an_identifier(value: object, column: str, origin: str) -> ConversationError:
    """The error of a row whose identifier is none."""
    return ConversationError(
        f"{origin}: {column} is a {type_name(value)}, not a text or a number; repair the row", reason="field_type"
    )


def parse_rows(rows: Sequence[Row], options: SourceOptions) -> tuple[Conversation, ...]:
    """Read the turns of one conversation."""
    column = id_column(rows[0].value, options)
    return (join_turns([row.value for row in rows], [row.origin for row in rows], options, id_column=column),)


def join_turns(
    rows: Sequence[Mapping[str, Any]], origins: Sequence[str], options: SourceOptions, *, id_column: str | None
) -> Conversation:
    """The conversation of rows that are its turns.

    Args:
        rows: The rows, in order.
        origins: Where each stands.
        options: How they are read.
        id_column: The column with the identifier.

    Returns:
        The conversation.

    Raises:
        ConversationError: If a turn is not valid, the turns are out of order, or the rows have different system prompts
            or tools.
    """
    notes = Notes(origins[0], options)
    turn_column = next((name for name in TURN_COLUMNS if _number(rows[0].get(name)) is not None), None)
    shared = {name: _shared(rows, origins, name) for name in _SHARED}
    tools = read_tools(shared, notes, wrap=True)
    messages: list[Message] = []
    last: float | None = None
    for turn, (row, origin) in enumerate(zip(rows, origins, strict=True)):
        place = f"{origins[0]}: turn {turn}" if turn == 0 else f"{origins[0]}: turn {turn} at {origin}"
        if turn_column is not None:
            number = _number(row.get(turn_column))
            if number is None or (last is not None and number < last):
                raise ConversationError(
                    f"{place}: {turn_column} is {row.get(turn_column)!r:.40} behind {last}, so the turns are out of"
                    " order; sort the file",
                    reason="turn_order",
                )
            last = number
        fields = {name: cell_value(name, value) for name, value in row.items() if name not in (id_column, turn_column)}
        # A label stands in one row of the conversation, or in all of them.
        for name in (*_SHARED, *refuse_rejected(fields, place)):
            fields.pop(name, None)
        messages.append(read_message(fields, notes, place, dialect=DIALECT))
    return notes.conversation(with_system(messages, only_string(shared, SYSTEM_FIELDS, origins[0]), origins[0]),
                              tools=tools)  # fmt: skip


def _number(value: object) -> float | None:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 53:
        return float(value)
    return float(value) if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 16 else None


def _shared(rows: Sequence[Mapping[str, Any]], origins: Sequence[str], name: str) -> Any:
    """What all rows say that say anything."""
    said = None
    for row, origin in zip(rows, origins, strict=True):
        value = row.get(name)
        if value is not None and value != said:
            if said is not None:
                raise ConversationError(
                    f"{origins[0]}: {name} of the conversation is another one at {origin}; write it once, or the same"
                    " on every row",
                    reason=name,
                )
            said = value
    return said
