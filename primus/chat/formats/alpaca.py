# SPDX-License-Identifier: Apache-2.0
"""One instruction and its response: `{"instruction", "input", "output", "history", "system"}` under all their names.

Alpaca, Dolly, LongForm and ms-swift (`query`, `response`) write such rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from primus.chat.formats.message_reading import SYSTEM_FIELDS
from primus.chat.formats.notes import Notes
from primus.chat.formats.options import SourceOptions
from primus.chat.formats.values import only_string, type_name
from primus.chat.messages import Conversation, Message
from primus.errors import ConversationError

INSTRUCTION_FIELDS = ("instruction", "prompt", "question", "query")
INPUT_FIELDS = ("input", "context")
RESPONSE_FIELDS = ("response", "output", "answer")
PROMPT_PARTS = (*INPUT_FIELDS, "history")
"""What belongs to an instruction, beside it."""
_FIELDS = frozenset({*INSTRUCTION_FIELDS, *INPUT_FIELDS, *RESPONSE_FIELDS, *SYSTEM_FIELDS, "history"})


def recognises(row: object, options: SourceOptions) -> bool:
    """Whether a row has an instruction, or an input that takes its place, and a response."""
    del options
    if not isinstance(row, Mapping) or not any(row.get(name) is not None for name in RESPONSE_FIELDS):
        return False
    prompts = [row[name] for name in (*INSTRUCTION_FIELDS, "input") if row.get(name) is not None]
    return bool(prompts) and not any(is_messages(prompt) for prompt in prompts)


def is_messages(value: object) -> bool:
    """Whether a value is a list of objects."""
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], Mapping)


def parse(row: Any, origin: str, options: SourceOptions) -> tuple[Conversation, ...]:
    """Read a row as one conversation."""
    notes = Notes(origin, options)
    instruction = only_string(row, INSTRUCTION_FIELDS, origin)
    response = only_string(row, RESPONSE_FIELDS, origin)
    if row.get("tools") or row.get("functions"):
        raise ConversationError(
            f"{origin}: a single-turn row has tools, which only rows with messages can have; write it as messages",
            reason="tools",
        )
    # Where a row has no instruction, its input is the whole of what the user says.
    input_text = only_string(row, INPUT_FIELDS if instruction is not None else INPUT_FIELDS[1:], origin)
    if instruction is None:
        instruction = only_string(row, INPUT_FIELDS[:1], origin)
    if instruction is None or response is None:
        missing = "instruction" if instruction is None else "response"
        raise ConversationError(
            f"{origin}: the row has no {missing}; name it {' or '.join(INSTRUCTION_FIELDS)}, and the answer"
            f" {' or '.join(RESPONSE_FIELDS)}",
            reason="fields",
        )
    system = only_string(row, SYSTEM_FIELDS, origin)
    if not row.keys() <= _FIELDS:
        notes.ignore_others(row, _FIELDS)
    history = read_history(row, origin)
    messages = turns(instruction, response, input_text=input_text, system_prompt=system, history=history)
    return (notes.conversation(messages),)


def read_history(row: Mapping[str, Any], origin: str) -> list[Message]:
    """The turns before the instruction.

    Args:
        row: The row.
        origin: What an error begins with.

    Returns:
        A message of the user and one of the assistant for each pair in `history`.

    Raises:
        ConversationError: If it is no list of pairs of texts.
    """
    pairs = row.get("history") or ()
    if not isinstance(pairs, list | tuple):
        raise ConversationError(
            f"{origin}: history is a {type_name(pairs)}, not a list of pairs [user, assistant]; repair the row",
            reason="history",
        )
    messages: list[Message] = []
    for i, pair in enumerate(pairs):
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise ConversationError(
                f"{origin}: history[{i}] is not a pair of strings [user, assistant]; repair the row", reason="history"
            )
        messages += [Message(role="user", content=pair[0]), Message(role="assistant", content=pair[1])]
    return messages


def refuse_unplaced(row: Mapping[str, Any], origin: str) -> None:
    """Refuse parts of a prompt beside one that has all its turns.

    Args:
        row: The row.
        origin: What the error begins with.

    Raises:
        ConversationError: If there is one that is not empty.
    """
    unplaced = next((name for name in PROMPT_PARTS if row.get(name)), None)
    if unplaced is not None:
        raise ConversationError(
            f"{origin}: has {unplaced!r} beside messages or a transcript, where it has no place; write it as one of"
            " their turns, or drop it",
            reason="ambiguous",
        )


def single_turn(
    instruction: str,
    response: str,
    *,
    input_text: str | None = None,
    system_prompt: str | None = None,
    history: Sequence[Message] = (),
    origin: str = "<memory>",
) -> Conversation:
    """The conversation of one instruction and its response.

    Args:
        instruction: What the user asks.
        response: What the assistant answers.
        input_text: Material for the instruction; not empty, it follows after a blank line.
        system_prompt: A system message, unless None or empty.
        history: Turns between the system message and the instruction.
        origin: Where it came from.

    Returns:
        An optional system message, the history, a user and an assistant message.

    Raises:
        ConversationError: If a text cannot be encoded.
    """
    messages = turns(instruction, response, input_text=input_text, system_prompt=system_prompt, history=history)
    return Conversation(messages=messages, origin=origin)


def turns(
    instruction: str,
    response: str,
    *,
    input_text: str | None,
    system_prompt: str | None,
    history: Sequence[Message],
) -> tuple[Message, ...]:
    """The messages of one instruction and its response; the arguments are those of `single_turn`."""
    system = [Message(role="system", content=system_prompt)] if system_prompt else []
    return (*system, *history, user_message(instruction, input_text), Message(role="assistant", content=response))


def user_message(instruction: str, input_text: str | None) -> Message:
    """What the user asks, with the material for it behind a blank line if there is any."""
    if not input_text:
        return Message(role="user", content=instruction)
    return Message(role="user", content=f"{instruction}\n\n{input_text}", input_start=len(instruction) + 2)
