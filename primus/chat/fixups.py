# SPDX-License-Identifier: Apache-2.0
"""Repairs that people ask for by name, each counted; without a name nothing is changed.

They are applied in this order, so that each finds what the ones before it leave behind:

    strip                   white space around every content is removed
    drop_empty_turns        a system, user or assistant message of white space alone is dropped, unless it has tool
                            calls or reasoning. Nobody else's words go with it: the question before an empty answer
                            stays. The empty answer of a tool is an answer, and stays
    drop_leading_assistant  what stands before the first user message and is not a system message is dropped: an
                            assistant's greeting, and the answers of tools that it called. Without a user message
                            nothing is
    merge_consecutive       neighbouring messages of one role become one, their contents joined by a blank line, where
                            nothing changes its place: the first has no tool calls (they follow its content) and the
                            second no reasoning (it comes before its content), and names, weights and tool_call_ids
                            are equal. Answers of tools stay apart

What every fix-up does, it does once: applied again, it finds nothing to do.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from primus.chat.messages import Conversation, Message
from primus.errors import ConversationError

NOTHING_LEFT = "nothing_left"
"""Reason of conversations in which the fix-ups leave nothing to train."""

_BLANK_LINE = "\n\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class FixUps:
    """Which repairs are made; see the module.

    Attributes:
        strip: Remove white space around contents.
        drop_empty_turns: Drop messages without content.
        drop_leading_assistant: Drop what the assistant says before the first user message.
        merge_consecutive: Join neighbouring messages of one role.
    """

    strip: bool = False
    drop_empty_turns: bool = False
    drop_leading_assistant: bool = False
    merge_consecutive: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the repairs that are made, in their order."""
        return tuple(field.name for field in fields(self) if getattr(self, field.name))


@dataclass(frozen=True, slots=True)
class Repaired:
    """A conversation after the fix-ups.

    Attributes:
        conversation: The conversation.
        counts: How many messages each fix-up changed, dropped, or joined to the one before; only those above 0.
    """

    conversation: Conversation
    counts: Counter[str]


def repair(conversation: Conversation, fix_ups: FixUps) -> Repaired:
    r"""Make the repairs that are asked for.

    Args:
        conversation: Any conversation.
        fix_ups: The repairs.

    Returns:
        The repaired conversation, the same one if there was nothing to do.

    Raises:
        ConversationError: If there was something to train and nothing is left of it. The reason is `NOTHING_LEFT`.

    Examples:
        >>> messages = (Message("user", "Hi "), Message("user", "there"), Message("assistant", "Yes?"))
        >>> repaired = repair(Conversation(messages), FixUps(strip=True, merge_consecutive=True))
        >>> repaired.conversation.messages[0].content, dict(repaired.counts)
        ('Hi\n\nthere', {'strip': 1, 'merge_consecutive': 1})
    """
    counts: Counter[str] = Counter()
    messages = conversation.messages
    for name in fix_ups.names:
        messages, count = _FIX_UPS[name](messages)
        if count:
            counts[name] = count
    if not counts:
        return Repaired(conversation, counts)
    if _is_trained(conversation.messages) and not _is_trained(messages):
        raise ConversationError(
            f"{conversation.origin}: nothing to train is left after {', '.join(counts)}; leave a fix-up out to keep it",
            reason=NOTHING_LEFT,
        )
    return Repaired(replace(conversation, messages=messages), counts)


def _is_trained(messages: Sequence[Message]) -> bool:
    return any(message.role == "assistant" and message.weight != 0 for message in messages)


def _strip(messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], int]:
    stripped = tuple(_stripped(message) for message in messages)
    return stripped, sum(new is not old for new, old in zip(stripped, messages, strict=True))


def _stripped(message: Message) -> Message:
    content = message.content.strip()
    if content == message.content:
        return message
    start = message.input_start
    if start is not None:
        start -= len(message.content) - len(message.content.lstrip())
        if not (2 <= start < len(content) and content[start - 2 : start] == _BLANK_LINE):
            start = None  # the instruction, or the input, was white space
    return replace(message, content=content, input_start=start)


def _drop_empty_turns(messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], int]:
    kept = tuple(message for message in messages if not _is_empty(message))
    return kept, len(messages) - len(kept)


def _is_empty(message: Message) -> bool:
    says_nothing = not message.content.strip() and not (message.reasoning or "").strip()
    return says_nothing and not message.tool_calls and message.role != "tool"


def _drop_leading_assistant(messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], int]:
    first_user = next((i for i, message in enumerate(messages) if message.role == "user"), 0)
    kept = (*(m for m in messages[:first_user] if m.role == "system"), *messages[first_user:])
    return kept, len(messages) - len(kept)


def _merge_consecutive(messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], int]:
    merged: list[Message] = []
    for message in messages:
        if merged and _can_follow(merged[-1], message):
            contents = [content for content in (merged[-1].content, message.content) if content]
            merged[-1] = replace(
                merged[-1], content=_BLANK_LINE.join(contents), tool_calls=message.tool_calls, input_start=None
            )
        else:
            merged.append(message)
    return tuple(merged), len(messages) - len(merged)


def _can_follow(first: Message, second: Message) -> bool:
    is_same = all(getattr(first, name) == getattr(second, name) for name in ("role", "name", "weight", "tool_call_id"))
    return is_same and first.role != "tool" and not first.tool_calls and second.reasoning is None


_FIX_UPS = {
    "strip": _strip,
    "drop_empty_turns": _drop_empty_turns,
    "drop_leading_assistant": _drop_leading_assistant,
    "merge_consecutive": _merge_consecutive,
}
