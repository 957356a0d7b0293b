# SPDX-License-Identifier: Apache-2.0
"""A prompt and what follows it: `{"prompt", "completion"}` as texts or lists of messages; of a pair the chosen side.

The prompt is built as that of an instruction: its `input` or `context` follows it, and `history` comes before it. As
TRL reads such rows, only the completion is trained: answers inside a prompt have weight 0. A `chosen` list that
begins with the prompt is the whole conversation.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from primus.chat.formats.alpaca import (
    INPUT_FIELDS,
    INSTRUCTION_FIELDS,
    PROMPT_PARTS,
    RESPONSE_FIELDS,
    is_messages,
    read_history,
    refuse_unplaced,
    user_message,
)
from primus.chat.formats.hh import is_transcript
from primus.chat.formats.message_reading import SYSTEM_FIELDS, read_messages, with_system
from primus.chat.formats.notes import Notes
from primus.chat.formats.options import SourceOptions
from primus.chat.formats.tools import read_tools
from primus.chat.formats.values import only_field, only_string, type_name
from primus.chat.messages import Conversation, Message
from primus.errors import ConversationError

_ANSWERS = ("completion", "chosen")
FIELDS = (*_ANSWERS, *INSTRUCTION_FIELDS)


def recognises(row: object, options: SourceOptions) -> bool:
    """Whether a row has a completion or a chosen answer behind a prompt, or a list of messages as prompt or answer."""
    del options
    if not isinstance(row, Mapping):
        return False
    prompts = [row[name] for name in INSTRUCTION_FIELDS if row.get(name) is not None]
    if row.get("chosen") is not None and not is_transcript(row["chosen"]):
        return bool(prompts) or is_messages(row["chosen"])
    if row.get("completion") is not None:
        return bool(prompts)
    return any(is_messages(prompt) for prompt in prompts) and any(row.get(n) is not None for n in RESPONSE_FIELDS)


def parse(row: Any, origin: str, options: SourceOptions) -> tuple[Conversation, ...]:
    """Read a row as one conversation."""
    notes = Notes(origin, options)
    prompt_field = only_field(row, INSTRUCTION_FIELDS, origin)
    answer_field = only_field(row, (*_ANSWERS, *RESPONSE_FIELDS), origin)
    if answer_field is None:
        raise ConversationError(f"{origin}: the row has no answer; name it {' or '.join(_ANSWERS)}", reason="fields")
    tools = read_tools(row, notes)
    answer = _messages(row, answer_field, "assistant", notes)
    messages = answer
    if prompt_field is not None:
        prompt = _prompt(row, prompt_field, notes)
        if not (answer_field == "chosen" and answer[: len(prompt)] == [replace(m, input_start=None) for m in prompt]):
            messages = [_as_context(message) for message in prompt] + answer
            _refuse_second_prompt(prompt, answer, answer_field, origin)
    else:
        refuse_unplaced(row, origin)
    system = only_string(row, SYSTEM_FIELDS, origin)
    known = {prompt_field, answer_field, *SYSTEM_FIELDS, *PROMPT_PARTS, "tools", "functions"}
    notes.ignore_others(row, known - {None})  # type: ignore[arg-type]
    return (notes.conversation(with_system(messages, system, origin), tools=tools),)


def _prompt(row: Mapping[str, Any], field: str, notes: Notes) -> list[Message]:
    """The messages of the prompt, with what belongs to it beside it."""
    if not isinstance(row[field], str):
        refuse_unplaced(row, notes.origin)
        return _messages(row, field, "user", notes)
    input_text = only_string({name: row.get(name) or None for name in INPUT_FIELDS}, INPUT_FIELDS, notes.origin)
    history = read_history(row, notes.origin)
    try:
        return [*history, user_message(row[field], input_text)]
    except ConversationError as exc:
        raise ConversationError(f"{notes.origin}: {field}: {exc}", reason=exc.reason) from exc


def _messages(row: Mapping[str, Any], field: str, role: str, notes: Notes) -> list[Message]:
    value = row[field]
    if isinstance(value, str):
        try:
            return [Message(role, value)]  # type: ignore[arg-type]  # one of the four
        except ConversationError as exc:
            raise ConversationError(f"{notes.origin}: {field}: {exc}", reason=exc.reason) from exc
    if isinstance(value, list | tuple):
        return read_messages(value, field, notes)
    raise ConversationError(
        f"{notes.origin}: {field!r} is a {type_name(value)}, not a string or a list of messages; repair the row",
        reason="field_type",
    )


def _as_context(message: Message) -> Message:
    is_unweighted = message.role == "assistant" and message.weight is None
    return replace(message, weight=0.0) if is_unweighted else message


def _refuse_second_prompt(prompt: list[Message], answer: list[Message], field: str, origin: str) -> None:
    """Refuse a chosen list that begins with a question of its own behind the prompt's."""
    if field == "chosen" and prompt and answer and prompt[-1].role == answer[0].role == "user":
        raise ConversationError(
            f"{origin}: chosen begins with a message of the user that is not the prompt; keep one of them",
            reason="ambiguous",
        )
