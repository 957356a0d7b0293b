# SPDX-License-Identifier: Apache-2.0
"""The parts of an assistant's message that a source writes as a list of typed blocks."""

from collections.abc import Mapping
from typing import Any

from primus.chat.messages import Message, ToolCall
from primus.errors import ConversationError

_ORDER = ("reasoning", "text", "call")


class OrderedParts:
    """Collects reasoning, text and calls, which a message has in this order.

    Args:
        place: What an error begins with.
    """

    def __init__(self, place: str) -> None:
        self._place = place
        self._last = 0
        self._reasoning: list[str] = []
        self._text: list[str] = []
        self._calls: list[ToolCall] = []

    def add_reasoning(self, text: str) -> None:
        """Add what is thought before the text."""
        self._advance("reasoning", text)
        self._reasoning.append(text)

    def add_text(self, text: str) -> None:
        """Add what is said before the calls."""
        self._advance("text", text)
        self._text.append(text)

    def add_call(self, call: ToolCall) -> None:
        """Add a call."""
        self._advance("call", call)
        self._calls.append(call)

    def _advance(self, kind: str, value: object) -> None:
        position = _ORDER.index(kind)
        if value and position < self._last:
            raise ConversationError(
                f"{self._place}: has {kind} behind {_ORDER[self._last]}, but a message has reasoning, text and calls in"
                " this order; split it into messages",
                reason="part_order",
            )
        if value:
            self._last = position

    @property
    def has_calls(self) -> bool:
        """Whether there is any call."""
        return bool(self._calls)

    @property
    def text(self) -> str:
        """What is said, with nothing between the blocks."""
        return "".join(self._text)

    def message(self, role: str, **fields: Any) -> Message:
        """The message of the parts.

        Args:
            role: Who speaks.
            **fields: Further fields of the message.

        Returns:
            The message.

        Raises:
            ConversationError: If it is not valid.
        """
        reasoning = "".join(self._reasoning) or None
        try:
            return Message(
                role,  # type: ignore[arg-type]  # Message checks it
                self.text,
                tool_calls=tuple(self._calls),
                reasoning=reasoning,
                **fields,
            )
        except ConversationError as exc:
            raise ConversationError(f"{self._place}: {exc}", reason=exc.reason) from exc


def has_typed_parts(messages: object, *, types: frozenset[str], key: str | None = None) -> bool:
    """Whether any message of a list has a content block of one of some types.

    Args:
        messages: What should be a list of messages.
        types: The types.
        key: A key that the block must have, too.

    Returns:
        Whether there is one.
    """
    if not isinstance(messages, list | tuple):
        return False
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, list | tuple):
            for part in content:
                if isinstance(part, Mapping) and (key is None or key in part):
                    kind = part.get("type")
                    if isinstance(kind, str) and kind in types:
                        return True
    return False
