# SPDX-License-Identifier: Apache-2.0
"""XTuner: `{"conversation": [{"system": ..., "input": ..., "output": ...}, {"input": ..., "output": ...}]}`.

Each entry is one question and its answer; `output_with_loss: false` keeps the answer as context only.
"""

from collections.abc import Mapping
from typing import Any

from primus.chat.formats.flags import read_shared_weight, refuse_rejected
from primus.chat.formats.message_reading import require_list
from primus.chat.formats.notes import Notes
from primus.chat.formats.options import SourceOptions
from primus.chat.formats.values import optional_string, type_name
from primus.chat.formats.weights import WEIGHT_FIELDS
from primus.chat.messages import Conversation, Message
from primus.errors import ConversationError

FIELD = "conversation"
_FIELDS = frozenset({"system", "input", "output", "output_with_loss", *WEIGHT_FIELDS})


def recognises(row: object, options: SourceOptions) -> bool:
    """Whether the first entry of a row's conversation has an `output`."""
    del options
    entries = row.get(FIELD) if isinstance(row, Mapping) else None
    return isinstance(entries, list | tuple) and bool(entries) and isinstance(entries[0], Mapping) and (
        "output" in entries[0]
    )  # fmt: skip


def parse(row: Any, origin: str, options: SourceOptions) -> tuple[Conversation, ...]:
    """Read a row as one conversation."""
    notes = Notes(origin, options)
    messages: list[Message] = []
    for i, entry in enumerate(require_list(row.get(FIELD), FIELD, origin)):
        messages += _read(entry, notes, f"{origin}: entry {i}")
    notes.ignore_others(row, (FIELD,))
    return (notes.conversation(messages),)


def _read(entry: object, notes: Notes, place: str) -> list[Message]:
    if not isinstance(entry, Mapping):
        raise ConversationError(
            f"{place}: is a {type_name(entry)}, not an object with input and output; repair the row",
            reason="not_an_object",
        )
    notes.ignore_others(entry, _FIELDS | refuse_rejected(entry, place))
    system = optional_string(entry, "system", place)
    texts = {name: optional_string(entry, name, place) for name in ("input", "output")}
    for name, text in texts.items():
        if text is None:
            raise ConversationError(f"{place}: {name} is missing; write a text, empty if you mean it", reason="content")
    is_trained = entry.get("output_with_loss")
    if is_trained is not None and not isinstance(is_trained, bool):
        raise ConversationError(
            f"{place}: output_with_loss is a {type_name(is_trained)}, not a boolean; repair the row", reason="weight"
        )
    weight = read_shared_weight(entry, place)
    if is_trained is not None:
        if weight is not None and weight != is_trained:
            raise ConversationError(
                f"{place}: says different things about its weight (output_with_loss {is_trained}, and a weight of"
                f" {weight:g}); keep one",
                reason="weight",
            )
        weight = float(is_trained)
    try:
        return [
            *([Message("system", system)] if system else []),
            Message("user", texts["input"] or ""),
            Message("assistant", texts["output"] or "", weight=weight),
        ]
    except ConversationError as exc:
        raise ConversationError(f"{place}: {exc}", reason=exc.reason) from exc
