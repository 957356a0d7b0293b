# SPDX-License-Identifier: Apache-2.0
r"""Transcripts as in HH-RLHF: `"\n\nHuman: ...\n\nAssistant: ..."`, in `chosen`, `text` or `transcript`.

A turn begins with `Human:` or `Assistant:` at the start of a line, behind a blank line (or at the very start). One
space behind the colon belongs to the marker; everything else up to the next blank line with a marker is the turn, with
all its whitespace. A transcript may also be cut in two: a `prompt` that ends with `\n\nAssistant:`, and the answer.
"""

import re
from collections.abc import Mapping
from typing import Any

from primus.chat.formats.alpaca import refuse_unplaced
from primus.chat.formats.notes import Notes
from primus.chat.formats.options import SourceOptions
from primus.chat.formats.values import only_field
from primus.chat.messages import Conversation, Message
from primus.errors import ConversationError

_FIELDS = ("chosen", "text", "transcript")
FIELDS = (*_FIELDS, "prompt")
_ANSWERS = ("completion", "response", "output", "chosen")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_MARKER = re.compile(r"(?:\A|\n\n)(Human|Assistant):(?: |)")
_START = re.compile(r"(?:\n\n)?(?:Human|Assistant):")


def is_transcript(value: object) -> bool:
    """Whether a value is a text that begins with a speaker's marker and has one of the assistant."""
    return isinstance(value, str) and _START.match(value) is not None and "Assistant:" in value


def recognises(row: object, options: SourceOptions) -> bool:
    """Whether one of the fields is such a text, or the prompt is one and has an answer beside it."""
    del options
    return isinstance(row, Mapping) and bool(_text_fields(row))


def _text_fields(row: Mapping[str, Any]) -> tuple[str, ...]:
    if is_transcript(row.get("prompt")):
        answers = [name for name in _ANSWERS if isinstance(row.get(name), str) and not is_transcript(row[name])]
        if answers:
            return ("prompt", *answers)
    return tuple(name for name in _FIELDS if is_transcript(row.get(name)))


def parse(row: Any, origin: str, options: SourceOptions) -> tuple[Conversation, ...]:
    """Read a transcript as one conversation; of a pair only the chosen one."""
    notes = Notes(origin, options)
    fields = _text_fields(row) if isinstance(row, Mapping) else ()
    if not fields:
        raise ConversationError(
            f"{origin}: no field of the row is a transcript that begins with 'Human:' or 'Assistant:'; name it"
            f" {' or '.join(_FIELDS)}",
            reason="fields",
        )
    only_field(row, fields[1:] if fields[0] == "prompt" else fields, origin)
    if fields[0] == "prompt" and not row["prompt"].endswith(("\n\nAssistant:", "\n\nAssistant: ")):
        raise ConversationError(
            f"{origin}: the prompt does not end with '\\n\\nAssistant:', so the answer is no turn of its own; repair"
            " the row",
            reason="transcript",
        )
    text = "".join(row[field] for field in fields[:2]) if fields[0] == "prompt" else row[fields[0]]
    pieces = _MARKER.split(text)
    if pieces[0]:
        raise ConversationError(
            f"{origin}: there is text before the first 'Human:' or 'Assistant:'; repair the row", reason="transcript"
        )
    messages = []
    for turn, (speaker, content) in enumerate(zip(pieces[1::2], pieces[2::2], strict=True)):
        try:
            messages.append(Message(_ROLES[speaker], content))  # type: ignore[arg-type]  # one of the four
        except ConversationError as exc:
            raise ConversationError(f"{origin}: turn {turn}: {exc}", reason=exc.reason) from exc
    refuse_unplaced(row, origin)
    notes.ignore_others(row, fields)
    return (notes.conversation(messages),)
