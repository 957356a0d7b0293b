# SPDX-License-Identifier: Apache-2.0
"""The usual row, read in a fraction of the time: `messages` and nothing else, each a role and a text."""

from primus.chat.formats.options import AUTO, SourceOptions
from primus.chat.messages import ROLES, Conversation, Message, plain_message

_ROLES = frozenset(ROLES)


def read_plain(row: object, origin: str, options: SourceOptions) -> Conversation | None:
    """The conversation of a row in which nothing has to be decided.

    Args:
        row: The decoded row.
        origin: Where it stands.
        options: How it is read.

    Returns:
        What the format `openai` reads, or None for a row that has anything else in it or is not valid.
    """
    if type(row) is not dict or len(row) != 1 or not takes_plain(options):
        return None
    items = row.get("messages")
    if type(items) is not list:
        return None
    messages: list[Message] = []
    is_answered = False
    for item in items:
        if type(item) is not dict or len(item) != 2:
            return None
        role, content = item.get("role"), item.get("content")
        if type(role) is not str or type(content) is not str or role not in _ROLES:
            return None
        if not content.isascii():
            try:
                content.encode()
            except UnicodeEncodeError:
                return None
        is_answered = is_answered or role == "assistant"
        messages.append(plain_message(role, content))
    return Conversation(tuple(messages), origin=origin) if is_answered else None


def takes_plain(options: SourceOptions) -> bool:
    """Whether rows are read in such a way that nothing has to be decided for the usual one.

    Args:
        options: How rows are read.

    Returns:
        The answer.
    """
    return (
        options.messages_field == "messages"
        and (options.format == AUTO or options.format == "openai")  # a tuple would be built each time
        and options.column_map is None
        and options.conversation_id is None
        and options.think == "keep"
        and not options.roles
    )
