# SPDX-License-Identifier: Apache-2.0
"""One message of a list of messages, in the words of any source."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from primus.chat.formats.flags import refuse_rejected
from primus.chat.formats.notes import Notes
from primus.chat.formats.options import FUNCTION_CALL
from primus.chat.formats.tools import calls_of_text, read_tool_calls
from primus.chat.formats.values import canonical_json, only_field, optional_string, type_name
from primus.chat.formats.weights import WEIGHT_FIELDS, read_weight
from primus.chat.messages import ROLES, Message, Role
from primus.errors import ConversationError

SYSTEM_FIELDS = ("system", "system_prompt")
"""Fields of a row that hold the system prompt."""
TEXT_PARTS = frozenset({"text", "input_text", "output_text"})
_REASONING = ("reasoning_content", "reasoning", "thinking")
_FIELDS = frozenset(
    {"tool_calls", "tool_call_id", "name", "function_call", "refusal", "input_start", *_REASONING, *WEIGHT_FIELDS}
)


@dataclass(frozen=True, slots=True)
class Dialect:
    """The words in which a source writes a message.

    Attributes:
        role_fields: Fields that name the speaker.
        content_fields: Fields with the text.
        roles: The names of the four roles, and of `function_call`.
        any_case: Whether names of roles are the same in capitals.
    """

    role_fields: tuple[str, ...]
    content_fields: tuple[str, ...]
    roles: Mapping[str, str]
    any_case: bool = False

    @property
    def known_fields(self) -> frozenset[str]:
        """Every field that is read."""
        return _FIELDS.union(self.role_fields, self.content_fields)


OPENAI_ROLES: dict[str, Role] = {**{role: role for role in ROLES}, "developer": "system", "function": "tool"}
OPENAI = Dialect(("role",), ("content",), OPENAI_ROLES)
_OPENAI_FIELDS = OPENAI.known_fields


def read_message(message: object, notes: Notes, place: str, *, dialect: Dialect = OPENAI) -> Message:
    """Read one message.

    Args:
        message: The decoded message.
        notes: What is known about the row; fields without a meaning are added.
        place: What an error begins with.
        dialect: The words of the source.

    Returns:
        The message, with its role in this project's words.

    Raises:
        ConversationError: If the message is not valid.
    """
    if not isinstance(message, Mapping):
        raise ConversationError(
            f"{place}: is a {type_name(message)}, not an object with role and content; repair the row",
            reason="not_an_object",
        )
    if dialect is OPENAI and _is_plain(message, notes):
        with suppress(ConversationError):
            return Message(role=message["role"], content=message["content"])
    name = read_role_name(message, dialect, place)
    role = role_of(name, notes, dialect)
    if role is not None:
        place = f"{place} ({name})"
    known = _OPENAI_FIELDS if dialect is OPENAI else dialect.known_fields
    if not message.keys() <= known:
        notes.ignore_others(message, known | refuse_bad_answer(message, role, place))
    try:
        return _message(message, role or name, notes, place, dialect)
    except ConversationError as exc:
        if str(exc).startswith(place):
            raise
        raise ConversationError(f"{place}: {exc}", reason=exc.reason) from exc


def _is_plain(message: Mapping[str, Any], notes: Notes) -> bool:
    """Whether a message is a role of the four and a text, and nothing else."""
    role, content = message.get("role"), message.get("content")
    is_of_two = len(message) == 2 and type(role) is str and type(content) is str
    return is_of_two and role in ROLES and role not in notes.options.roles


def _message(message: Mapping[str, Any], role: str, notes: Notes, place: str, dialect: Dialect) -> Message:
    tool_calls = read_tool_calls(message, notes, place)
    content = read_content(message, dialect, role, notes, place, needed=not tool_calls)
    if role == FUNCTION_CALL:
        if tool_calls:
            raise ConversationError(f"{place}: has tool_calls beside its call; keep one", reason="tool_calls")
        role, tool_calls, content = "assistant", calls_of_text(content, notes, place), ""
    return Message(
        role=role,  # type: ignore[arg-type]  # Message checks it
        content=content,
        tool_calls=tool_calls,
        tool_call_id=optional_string(message, "tool_call_id", place),
        name=optional_string(message, "name", place),
        reasoning=read_reasoning(message, place),
        weight=read_weight(message, place),
        input_start=_input_start(message, place),
    )


def read_role_name(message: Mapping[str, Any], dialect: Dialect, place: str) -> str:
    """The name that the source has for the speaker.

    Args:
        message: The message.
        dialect: The words of the source.
        place: What an error begins with.

    Returns:
        The name.

    Raises:
        ConversationError: If there is none.
    """
    field = dialect.role_fields[0]
    if len(dialect.role_fields) > 1:
        field = only_field(message, dialect.role_fields, place) or field
    role = message.get(field)
    if not isinstance(role, str):
        raise ConversationError(f"{place}: {field} is {type_name(role)}, not a string; name the role", reason="role")
    return role


def role_of(name: str, notes: Notes, dialect: Dialect) -> str | None:
    """The role that a name stands for.

    Args:
        name: The name in the source.
        notes: What is known about the row; its options may have further names.
        dialect: The words of the source.

    Returns:
        One of the four roles or `function_call`; None if the name is not known.
    """
    role = notes.options.roles.get(name) or dialect.roles.get(name)
    return dialect.roles.get(name.lower()) if role is None and dialect.any_case else role


def refuse_bad_answer(message: Mapping[str, Any], role: str | None, place: str) -> frozenset[str]:
    """Refuse an answer that is marked as a bad example; what such a field says of others is none of our concern.

    Args:
        message: The message.
        role: Its role.
        place: What an error begins with.

    Returns:
        The fields that say that the answer is a good one.

    Raises:
        ConversationError: If one of them says that it is a bad one.
    """
    return refuse_rejected(message, place) if role in ("assistant", FUNCTION_CALL) else frozenset()


def read_content(
    message: Mapping[str, Any], dialect: Dialect, role: str, notes: Notes, place: str, *, needed: bool
) -> str:
    """The text of a message: a string, a text part, or a list of text parts; of a tool also an object.

    Args:
        message: The message.
        dialect: The words of the source.
        role: The role.
        notes: What is known about the row.
        place: What an error begins with.
        needed: Whether there has to be a text.

    Returns:
        The text; parts follow each other with nothing between them, and an object of a tool is canonical JSON.

    Raises:
        ConversationError: If it is something else.
    """
    field = dialect.content_fields[0]
    if len(dialect.content_fields) > 1:
        field = only_field(message, dialect.content_fields, place) or field
    content = message.get(field)
    if message.get("refusal"):
        raise ConversationError(
            f"{place}: has a refusal beside its {field}; move the text you want to train into {field}",
            reason="refusal",
        )
    if isinstance(content, str):
        return content
    if content is None:
        if not needed:
            return ""
        state = "null" if field in message else "missing"
        raise ConversationError(
            f"{place}: {field} is {state}, and there are no tool_calls; write a text, empty if you mean it",
            reason="content",
        )
    if isinstance(content, list | tuple):
        return "".join([read_text_part(part, notes, f"{place}: {field}[{i}]") for i, part in enumerate(content)])
    if isinstance(content, Mapping):
        if content.get("type") is not None and _is_text_type(content["type"]):
            return read_text_part(content, notes, f"{place}: {field}")
        if role == "tool":
            return canonical_json(content, f"{place}: {field}")
    raise ConversationError(
        f"{place}: {field} is a {type_name(content)}, not a string or a list of text parts; repair the row",
        reason="content",
    )


def read_text_part(part: object, notes: Notes, place: str) -> str:
    """The text of one part of a content.

    Args:
        part: The decoded part.
        notes: What is known about the row.
        place: What an error begins with.

    Returns:
        The text.

    Raises:
        ConversationError: If it is not a text part.
    """
    if isinstance(part, Mapping) and _is_text_type(part.get("type")) and isinstance(part.get("text"), str):
        if len(part) > 2:
            notes.ignore_others(part, ("type", "text"), prefix="content.")
        return str(part["text"])
    found = f"a part of type {part.get('type')!r:.60}" if isinstance(part, Mapping) else f"a {type_name(part)}"
    raise ConversationError(
        f'{place}: is {found}, not {{"type": "text", "text": ...}}; only text can be trained here',
        reason="content_part",
    )


def _is_text_type(name: object) -> bool:
    return name is None or (isinstance(name, str) and name in TEXT_PARTS)


def read_reasoning(message: Mapping[str, Any], place: str) -> str | None:
    """What the assistant thought, under any of the names for it.

    Args:
        message: The message.
        place: What an error begins with.

    Returns:
        The text, or None if there is none.

    Raises:
        ConversationError: If it is no string, or two fields differ.
    """
    if message.keys().isdisjoint(_REASONING):
        return None
    texts = {text for name in _REASONING if (text := optional_string(message, name, place))}
    if len(texts) > 1:
        raise ConversationError(
            f"{place}: has different reasoning in {' and '.join(n for n in _REASONING if message.get(n))}; keep one",
            reason="reasoning",
        )
    return texts.pop() if texts else None


def _input_start(message: Mapping[str, Any], place: str) -> int | None:
    start = message.get("input_start")
    if start is None or (isinstance(start, int) and not isinstance(start, bool)):
        return start
    raise ConversationError(f"{place}: input_start is {start!r:.40}, not a whole number; drop it", reason="input_start")


def read_messages(
    messages: object, field: str, notes: Notes, *, dialect: Dialect = OPENAI, system: str | None = None
) -> list[Message]:
    """Read a list of messages.

    Args:
        messages: What should be the list.
        field: Its name in the row.
        notes: What is known about the row.
        dialect: The words of the source.
        system: A system prompt that the row has beside the list.

    Returns:
        The messages, in order, with the system prompt in front of them.

    Raises:
        ConversationError: If it is no list, a message is not valid, or there are two different system prompts.
    """
    items = require_list(messages, field, notes.origin)
    place = f"{notes.origin}: turn "
    read = [read_message(m, notes, f"{place}{turn}", dialect=dialect) for turn, m in enumerate(items)]
    return with_system(read, system, notes.origin)


def with_system(messages: list[Message], system: str | None, origin: str) -> list[Message]:
    """Put a system prompt in front of messages, unless it is there.

    Args:
        messages: The messages.
        system: The prompt, None or empty for none.
        origin: What an error begins with.

    Returns:
        The messages.

    Raises:
        ConversationError: If the messages begin with another system prompt.
    """
    if not system:
        return messages
    if messages and messages[0].role == "system":
        if messages[0].content != system:
            raise ConversationError(
                f"{origin}: has one system prompt beside its messages and another one in them; keep one",
                reason="system",
            )
        return messages
    return [Message("system", system), *messages]


def require_list(messages: object, field: str, origin: str) -> Sequence[object]:
    """Refuse what is not a list of messages.

    Args:
        messages: What should be the list.
        field: Its name in the row.
        origin: What an error begins with.

    Returns:
        The list.

    Raises:
        ConversationError: If it is none.
    """
    if isinstance(messages, list | tuple):
        return messages
    remedy = "repair the row"
    if isinstance(messages, str):
        remedy = "if it holds JSON, decode it when the file is made"
    raise ConversationError(
        f"{origin}: {field!r} is a {type_name(messages)}, not a list of messages; {remedy}", reason="messages_type"
    )
