# SPDX-License-Identifier: Apache-2.0
"""What a parser keeps while it reads a row, and the conversation that it ends with."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from primus.chat.formats.options import SourceOptions
from primus.chat.messages import Conversation, Message
from primus.errors import ConversationError

_THINK = re.compile(r"\s*<think>(?P<reasoning>.*?)</think>", re.DOTALL)
_TAG = re.compile(r"</?think>")
EMPTY_THINK = "empty <think> elements"
"""What is noted of elements that hold no words and are dropped."""


@dataclass(slots=True)
class Notes:
    """What is known about the row that is being read.

    Attributes:
        origin: Where it stands.
        options: How it is read.
        ignored: Fields that have no place in a conversation.
        parameters: The parameters that each tool declares, by its name.
    """

    origin: str
    options: SourceOptions
    ignored: set[str] = field(default_factory=set)
    parameters: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def ignore_others(self, fields: Mapping[str, Any], known: Iterable[str], *, prefix: str = "") -> None:
        """Remember the fields that are not known and not null.

        Args:
            fields: A decoded object.
            known: The fields that are read.
            prefix: What their names begin with.
        """
        for name in fields.keys() - known:
            if fields[name] is not None:
                self.ignored.add(f"{prefix}{name}")

    def conversation(
        self, messages: Iterable[Message], *, tools: tuple[str, ...] = (), origin: str | None = None
    ) -> Conversation:
        """The conversation of the messages that were read.

        Args:
            messages: The messages.
            tools: The definitions of the tools.
            origin: Where it came from, if it is one of several of its row.

        Returns:
            The conversation.

        Raises:
            ConversationError: If it is not valid.
        """
        messages = tuple(messages)
        if self.options.think == "split":
            split = tuple(
                split_think(message, place=f"{self.origin}: turn {turn}") for turn, message in enumerate(messages)
            )
            if any(new is not old and new.reasoning is None for new, old in zip(split, messages, strict=True)):
                self.ignored.add(EMPTY_THINK)
            messages = split
        return Conversation(
            messages, tools=tools, origin=origin or self.origin, ignored_fields=tuple(sorted(self.ignored))
        )


def split_think(message: Message, *, place: str) -> Message:
    r"""Take a `<think>` element from the start of an assistant's content and make it the reasoning.

    White space before the element and line ends that border on its tags are layout and belong to neither part. An
    element without words gives no reasoning.

    Args:
        message: Any message.
        place: What an error begins with.

    Returns:
        The message; the same one if there is no such element.

    Raises:
        ConversationError: If the element is not closed, another tag is in it or follows it, or the message has other
            reasoning besides.

    Examples:
        >>> split = split_think(Message("assistant", "<think>\nEasy.\n</think>\n\n4"), place="a.jsonl:1")
        >>> split.reasoning, split.content
        ('Easy.', '4')
    """
    if message.role != "assistant" or not message.content.lstrip().startswith("<think>"):
        return message
    match = _THINK.match(message.content)
    if match is None:
        raise ConversationError(
            f"{place}: content begins with <think>, which is never closed; repair the row, or leave it in the content"
            " with think: keep",
            reason="think",
        )
    if _TAG.search(match["reasoning"]) or _TAG.search(message.content, match.end()):
        raise ConversationError(
            f"{place}: content has another tag of <think> besides the element at its start, so the reasoning is not one"
            " text; repair the row, or leave it in the content with think: keep",
            reason="think",
        )
    if message.reasoning is not None:
        raise ConversationError(
            f"{place}: has reasoning beside a <think> element in its content; keep one", reason="think"
        )
    reasoning = match["reasoning"].strip("\n")
    content = message.content[match.end() :].lstrip("\n")
    return replace(message, content=content, reasoning=reasoning if reasoning.strip() else None)
