# SPDX-License-Identifier: Apache-2.0
"""One row, or one message, without a file around it."""

from collections.abc import Mapping, Sequence

from primus.chat.formats.alpaca import INPUT_FIELDS, INSTRUCTION_FIELDS, RESPONSE_FIELDS, single_turn
from primus.chat.formats.message_reading import SYSTEM_FIELDS, read_message
from primus.chat.formats.notes import Notes
from primus.chat.formats.options import AUTO, SourceOptions
from primus.chat.formats.registry import parse_row
from primus.chat.messages import Conversation, Message
from primus.errors import ConversationError

__all__ = [
    "INPUT_FIELDS",
    "INSTRUCTION_FIELDS",
    "RESPONSE_FIELDS",
    "SYSTEM_FIELDS",
    "parse_conversation",
    "parse_message",
    "single_turn",
]

_DEFAULTS = SourceOptions()


def parse_conversation(
    row: object,
    *,
    format: str = AUTO,  # noqa: A002 - the name of the option everywhere
    origin: str = "<memory>",
    messages_field: str | Sequence[str] = "messages",
    options: SourceOptions | None = None,
) -> Conversation:
    """Read one row as a conversation.

    Args:
        row: A value as decoded from JSON. `null` in an optional field means that the field is absent.
        format: Name of the source format; `auto` recognises it.
        origin: Where the row stands, as `file:line`.
        messages_field: The name, or names, of the field with the messages. The first one that the row has is used.
        options: All options at once, instead of `format` and `messages_field`.

    Returns:
        The conversation, with its messages in the row's order and nothing stripped. Tool-call arguments and tool
        definitions are canonical JSON text. A single-turn row gives an optional system message, a user message
        (`instruction`, and `input` below it after a blank line if it is not empty) and an assistant message.

    Raises:
        ConversationError: If the row is of no known format, anything in it has the wrong type or is not allowed, or it
            holds several conversations or only a part of one. The message begins with the origin and names the turn,
            from 0.

    Examples:
        >>> conversation = parse_conversation({"question": "2 + 2?", "answer": "4"})
        >>> [(m.role, m.content) for m in conversation.messages]
        [('user', '2 + 2?'), ('assistant', '4')]
    """
    if options is None:
        options = _DEFAULTS
        if format != AUTO or messages_field != "messages":
            fields = messages_field if isinstance(messages_field, str) else tuple(messages_field)
            options = SourceOptions(format=format, messages_field=fields)
    conversations = parse_row(row, origin, options)
    if len(conversations) != 1:
        raise ConversationError(
            f"{origin}: the row holds {len(conversations)} conversations; read the file with read_conversations, which"
            " gives them all",
            reason="several_conversations",
        )
    return conversations[0]


def parse_message(message: object, *, place: str, roles: Mapping[str, str] | None = None) -> Message:
    """Read one message of the OpenAI format.

    Args:
        message: The decoded message.
        place: What an error begins with.
        roles: Further names of roles.

    Returns:
        The message, with its role in this project's words.

    Raises:
        ConversationError: If the message is not valid.
    """
    return read_message(message, Notes(place, SourceOptions(roles=roles) if roles else _DEFAULTS), place)
