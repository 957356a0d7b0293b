# SPDX-License-Identifier: Apache-2.0
"""The conversation and its parts: frozen, and valid if they exist."""

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from json.encoder import encode_basestring
from typing import Any, Literal, get_args

from primus.errors import ConversationError

Role = Literal["system", "user", "assistant", "tool"]

ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that the assistant asks to be called.

    Attributes:
        name: The function's name.
        arguments: Its arguments as a JSON object in canonical text: parsed and written again by `json.dumps` with its
            default separators and without ASCII escapes, which is what a chat template's `tojson` writes.
        id: The identifier that the tool's answer refers to, if the source has one.
    """

    name: str
    arguments: str
    id: str | None = None

    def __post_init__(self) -> None:
        check_encodable(f"tool call {self.name!r:.60}", self.name + self.arguments + (self.id or ""))

    def to_json(self) -> str:
        """The call as models with Hermes or Qwen tool templates write it.

        Returns:
            JSON text with the keys `name` and `arguments`.

        Examples:
            >>> ToolCall(name="add", arguments='{"a": 1}').to_json()
            '{"name": "add", "arguments": {"a": 1}}'
        """
        return f'{{"name": {json.dumps(self.name, ensure_ascii=False)}, "arguments": {self.arguments}}}'


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: Who speaks.
        content: What is said; empty beside tool calls that stand alone.
        tool_calls: Calls that follow the content (assistant only).
        tool_call_id: The call that a tool message answers.
        name: The speaker's or the tool's name, where the source has one.
        reasoning: What the assistant thought before it spoke.
        weight: Factor of this turn's loss; 0 keeps the turn as context only, None leaves it to the data set.
        input_start: Where in the content the `input` of a single-turn row begins, after the instruction and a blank
            line, for formats that give it a section of its own; None if there is none.

    Raises:
        ConversationError: If a field does not fit the role, a text is not encodable, the weight is not a finite
            number of at least 0, or no input begins at `input_start`. The message says what; the caller adds the
            place.
    """

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    reasoning: str | None = None
    weight: float | None = None
    input_start: int | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ConversationError(f"unknown role {self.role!r:.60}; use one of {', '.join(ROLES)}", reason="role")
        if self.role != "assistant":
            if self.tool_calls:
                raise ConversationError(f"a {self.role} message has tool_calls; only the assistant calls tools",
                                        reason="tool_calls")  # fmt: skip
            if self.reasoning is not None:
                raise ConversationError(f"a {self.role} message has reasoning; only the assistant reasons",
                                        reason="reasoning")  # fmt: skip
            if self.weight:
                raise ConversationError(
                    f"a {self.role} message has weight {self.weight}; only assistant messages are trained, so drop the"
                    " weight or set it to 0", reason="weight")  # fmt: skip
        if self.weight is not None and not (math.isfinite(self.weight) and self.weight >= 0):
            raise ConversationError(
                f"weight {self.weight} is not a finite number of at least 0; write 0 or 1", reason="weight"
            )
        if self.input_start is not None and not self._has_input():
            raise ConversationError(
                f"input_start is {self.input_start}, but no text of a user's message begins there after a blank line;"
                " drop it", reason="input_start")  # fmt: skip
        check_encodable("content", self.content)
        for what, text in (("reasoning", self.reasoning), ("name", self.name), ("tool_call_id", self.tool_call_id)):
            if text is not None:
                check_encodable(what, text)

    def _has_input(self) -> bool:
        start = self.input_start or 0
        return self.role == "user" and 2 <= start < len(self.content) and self.content[start - 2 : start] == "\n\n"


_set_role, _set_content, *_set_others = (getattr(Message, field.name).__set__ for field in fields(Message))
_set_calls, _set_call_id, _set_name, _set_reasoning, _set_weight, _set_input_start = _set_others


def plain_message(role: Role, content: str) -> Message:
    """A message of a role and a text, in a third of the time that `Message` takes to check all fields.

    Args:
        role: Who speaks, one of the four.
        content: What is said; must be encodable.

    Returns:
        The message.
    """
    message = object.__new__(Message)
    _set_role(message, role)
    _set_content(message, content)
    _set_calls(message, ())
    _set_call_id(message, None)
    _set_name(message, None)
    _set_reasoning(message, None)
    _set_weight(message, None)
    _set_input_start(message, None)
    return message


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages that belong together, in order.

    Attributes:
        messages: At least one message, of which at least one is the assistant's.
        tools: Definitions of the tools that the assistant may call, each as canonical JSON text.
        origin: Where the conversation came from, as `file:line`; not part of its identity.
        ignored_fields: Fields of the source's messages that have no place here, sorted; not part of its identity.

    Raises:
        ConversationError: If there is no message, or no assistant message. The error begins with the origin.
    """

    messages: tuple[Message, ...]
    tools: tuple[str, ...] = ()
    origin: str = field(default="<memory>", compare=False)
    ignored_fields: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        for tool in self.tools:
            check_encodable(f"{self.origin}: tools", tool)
        if not self.messages:
            raise ConversationError(f"{self.origin}: there are no messages; drop the row", reason="empty")
        if not any(message.role == "assistant" for message in self.messages):
            raise ConversationError(
                f"{self.origin}: none of the {len(self.messages)} messages is the assistant's, so there is nothing to"
                " train; drop the row",
                reason="no_assistant",
            )

    @property
    def content_hash(self) -> str:
        """128 bits that are equal for equal conversations, wherever they came from."""
        return self._hash(len(self.messages)).hex()

    @property
    def opening_hash(self) -> str:
        """128 bits that are equal for conversations with the same tools and the same messages up to the first question.

        Splits go by it: conversations that go on from one question, such as the branches of a tree, or a conversation
        and its beginning, can't land on different sides of a train/validation split. The first question is the first
        user message, or where there is none the first message that is not a system message.
        """
        roles = [message.role for message in self.messages]
        if "user" in roles:
            return self._hash(roles.index("user") + 1).hex()
        return self._hash(next(i for i, role in enumerate(roles, start=1) if role != "system")).hex()

    def _hash(self, num_messages: int) -> bytes:
        # Tools bring a system turn along, so an empty one in front of them changes nothing.
        skipped = 1 if self.tools and self.messages[0] == Message("system", "") else 0
        facts = [json.dumps(self.tools, ensure_ascii=False, separators=(",", ":"))]
        for m in self.messages[skipped:num_messages]:
            if m.tool_calls or m.reasoning is not None:
                calls = [[c.name, c.arguments] for c in m.tool_calls]
                fact: list[Any] = [m.role, m.content, calls, m.reasoning]
                facts.append(json.dumps(fact, ensure_ascii=False, separators=(",", ":")))
            else:
                facts.append(_fact_of_plain(m.role, m.content))
        return _hash_of(facts)


def hash_of_plain(messages: Iterable[tuple[str, str]]) -> str:
    """What `Conversation.opening_hash` is where messages are roles and texts and there are no tools.

    Args:
        messages: Role and text of each message of the opening.

    Returns:
        The hash.
    """
    return _hash_of(["[]", *(_fact_of_plain(role, content) for role, content in messages)]).hex()


def _fact_of_plain(role: str, content: str) -> str:
    """The JSON text of a message of a role and a text, sooner than by `json.dumps`."""
    return f'["{role}",{encode_basestring(content)},[],null]'


def _hash_of(facts: Sequence[str]) -> bytes:
    return hashlib.blake2b(f"[{','.join(facts)}]".encode(), digest_size=16).digest()


def check_encodable(what: str, text: str) -> None:
    """Refuse text that UTF-8 cannot hold.

    Args:
        what: The name of the text, for the message.
        text: The text.

    Raises:
        ConversationError: If there is a lone surrogate, as a broken escape in JSON leaves.
    """
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise ConversationError(
            f"{what} has the lone surrogate U+{ord(text[exc.start]):04X} at character {exc.start}, which is no text;"
            " repair the source's escapes",
            reason="encoding",
        ) from exc
