# SPDX-License-Identifier: Apache-2.0
"""What a row says about all of its answers: that they are bad examples, or how much they weigh.

A row may stand in a table of text, so its flags may be text, too.
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any

from primus.chat.formats.weights import SWITCHES, WEIGHT_FIELDS, cell_value, read_weight
from primus.chat.messages import Conversation, Message
from primus.errors import ConversationError

LABEL_FIELDS = ("label", "kto_tag")
ROW_FLAGS = frozenset({*LABEL_FIELDS, *WEIGHT_FIELDS})
_TRUTHS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def _truth(value: object) -> bool | None:
    """What a value says as a yes or no; None if it is something else."""
    if isinstance(value, str):
        return _TRUTHS.get(value.strip().lower())
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else None


def refuse_rejected(
    row: Mapping[str, Any], origin: str, *, names: Sequence[str] = LABEL_FIELDS, is_declared: bool = False
) -> frozenset[str]:
    """Refuse an answer that the source marks as a bad example.

    Args:
        row: The row, or the message.
        origin: What the error begins with.
        names: Fields that say whether the answer is a good one.
        is_declared: Whether somebody says that this is what the fields mean; else a field with another value than yes
            or no means something else, such as a class.

    Returns:
        The fields that say that the answer is a good one.

    Raises:
        ConversationError: If one of them is false, or declared and neither true nor false.
    """
    good = set()
    for name in names:
        value = row.get(name)
        truth = _truth(value)
        if truth is False:
            shown = "false" if value is False else f"{value!r}"
            raise ConversationError(
                f"{origin}: {name} is {shown}, so the answer is an example of a bad one; drop the row, or {name} to"
                " train it",
                reason="rejected_answer",
            )
        if truth is None and value is not None and is_declared:
            raise ConversationError(
                f"{origin}: {name} is {value!r:.40}, which is neither true nor false; write true, false, 1 or 0",
                reason="label",
            )
        if truth:
            good.add(name)
    return frozenset(good)


def read_shared_weight(fields: Mapping[str, Any], place: str) -> float | None:
    """The weight of all answers of a row, or of a pair of a question and its answer.

    Args:
        fields: The row or the pair. The fields are those of messages, as values or as text; those that are no numbers
            by their name have to be yes or no, for a number such as a measured loss means something else.
        place: What an error begins with.

    Returns:
        The weight, or None if nothing is said.

    Raises:
        ConversationError: If a field does not say what it means, or two fields differ.
    """
    values = {name: cell_value(name, fields[name]) for name in WEIGHT_FIELDS if fields.get(name) is not None}
    for name in values.keys() & set(SWITCHES):
        if isinstance(values[name], int | float) and values[name] not in (0, 1):
            raise ConversationError(
                f"{place}: {name} is {fields[name]!r:.40}, which says neither that the answers are trained nor that"
                " they are not; write 0 or 1, or rename the field if it means something else",
                reason="weight",
            )
    weight = read_weight(values, place)
    if weight is not None and weight < 0:
        raise ConversationError(
            f"{place}: weight {weight} is not a finite number of at least 0; write 0 or 1", reason="weight"
        )
    return weight


def take_flags(
    row: Mapping[str, Any], origin: str, *, others: AbstractSet[str] = frozenset()
) -> tuple[Mapping[str, Any], float | None]:
    """Read the flags of a row.

    Args:
        row: The row.
        origin: What an error begins with.
        others: Fields that are known to mean something else.

    Returns:
        The row without the flags that were read, and the weight of its answers.

    Raises:
        ConversationError: If the answers are bad examples, or a flag does not say what it means.
    """
    flags = {name: row[name] for name in ROW_FLAGS & row.keys() if name not in others}
    if isinstance(flags.get("mask"), str) and _truth(flags["mask"]) is None:
        del flags["mask"]  # the name of the speaker who is not trained, as in NeMo
    good = refuse_rejected(flags, origin)
    weight = read_shared_weight(flags, origin)
    read = good.union(flags.keys() & set(WEIGHT_FIELDS))
    return {name: value for name, value in row.items() if name not in read}, weight


def weighted(message: Message, weight: float | None) -> Message:
    """A message with the weight of what it is a part of, if it is an answer without one of its own."""
    is_without = weight is not None and message.role == "assistant" and message.weight is None
    return replace(message, weight=weight) if is_without else message


def with_weight(conversation: Conversation, weight: float | None) -> Conversation:
    """A conversation whose answers have the weight of their row, unless they have one of their own."""
    if weight is None:
        return conversation
    return replace(conversation, messages=tuple(weighted(message, weight) for message in conversation.messages))
