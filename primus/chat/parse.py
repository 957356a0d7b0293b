# SPDX-License-Identifier: Apache-2.0
"""One row of a data file to one conversation.

Two kinds of rows mix in one file and are told apart row by row:

    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}    OpenAI messages
    {"instruction": "Say hi", "input": "", "output": "Hello"}                                       single-turn (alpaca)

A row that has a messages field is read by it alone; further fields of such a row (`prompt`, `id`, scores) say nothing
about the conversation.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from primus.chat.messages import ROLES, Conversation, Message, ToolCall
from primus.chat.reading import load_json
from primus.errors import ConversationError

INSTRUCTION_FIELDS = ("instruction", "prompt", "question")
INPUT_FIELDS = ("input", "context")
RESPONSE_FIELDS = ("response", "output", "answer")
SYSTEM_FIELDS = ("system",)

# Names that other vendors, or older versions of the format, use for the four roles.
_ROLE_NAMES = {"developer": "system", "function": "tool"}
_MESSAGE_FIELDS = frozenset(
    {"role", "content", "tool_calls", "tool_call_id", "name", "weight", "reasoning_content", "function_call", "refusal"}
)


def parse_conversation(
    row: object, *, origin: str = "<memory>", messages_field: str | Sequence[str] = "messages"
) -> Conversation:
    """Read one row as a conversation.

    Args:
        row: A mapping, as decoded from JSON. `null` in an optional field means that the field is absent.
        origin: Where the row stands, as `file:line`.
        messages_field: The name, or names, of the field with the messages. The first one that the row has is used.

    Returns:
        The conversation, with its messages in the row's order and nothing stripped. Tool-call arguments and tool
        definitions are canonical JSON text. The names `developer` and `function` are read as the roles `system` and
        `tool`. A single-turn row gives an optional system message, a user message (`instruction`, and `input` below it
        after a blank line if it is not empty) and an assistant message.

    Raises:
        ConversationError: If the row is neither kind, or anything in it has the wrong type or is not allowed. The
            message begins with the origin and names the turn, from 0.

    Examples:
        >>> conversation = parse_conversation({"question": "2 + 2?", "answer": "4"})
        >>> [(m.role, m.content) for m in conversation.messages]
        [('user', '2 + 2?'), ('assistant', '4')]
    """
    if not isinstance(row, Mapping):
        raise ConversationError(
            f"{origin}: the row is a {_type_name(row)}, not an object; write one object per row", reason="not_an_object"
        )
    names = (messages_field,) if isinstance(messages_field, str) else tuple(messages_field)
    for name in names:
        if row.get(name) is not None:
            return _from_messages(row, name, origin)
    return _from_single_turn(row, names, origin)


def parse_message(message: object, *, place: str) -> Message:
    """Read one message of the OpenAI format.

    Args:
        message: The decoded message.
        place: What an error begins with.

    Returns:
        The message, with its role in this project's words.

    Raises:
        ConversationError: If the message is not valid.
    """
    if not isinstance(message, Mapping):
        raise ConversationError(
            f"{place}: is a {_type_name(message)}, not an object with role and content; repair the row",
            reason="not_an_object",
        )
    role = message.get("role")
    if not isinstance(role, str):
        raise ConversationError(f"{place}: role is {_type_name(role)}, not a string; name the role", reason="role")
    if role in ROLES or role in _ROLE_NAMES:
        place = f"{place} ({role})"
    try:
        tool_calls = _tool_calls(message, place)
        return Message(
            role=_ROLE_NAMES.get(role, role),  # type: ignore[arg-type]  # Message checks it
            content=_content(message, place, needed=not tool_calls),
            tool_calls=tool_calls,
            tool_call_id=_optional_string(message, "tool_call_id", place),
            name=_optional_string(message, "name", place),
            reasoning=_optional_string(message, "reasoning_content", place) or None,
            weight=_weight(message, place),
        )
    except ConversationError as exc:
        if str(exc).startswith(place):
            raise
        raise ConversationError(f"{place}: {exc}", reason=exc.reason) from exc


def _from_messages(row: Mapping[str, Any], name: str, origin: str) -> Conversation:
    messages = row[name]
    if isinstance(messages, str):
        raise ConversationError(
            f"{origin}: {name!r} is a string, not a list of messages; if it holds JSON, decode it when the file is"
            " made",
            reason="messages_type",
        )
    if not isinstance(messages, list | tuple):
        raise ConversationError(
            f"{origin}: {name!r} is a {_type_name(messages)}, not a list of messages; repair the row",
            reason="messages_type",
        )
    return Conversation(
        messages=tuple(parse_message(m, place=f"{origin}: turn {turn}") for turn, m in enumerate(messages)),
        tools=_tools(row, origin),
        origin=origin,
        ignored_fields=tuple(sorted({str(name) for message in messages for name in _ignored(message)})),
    )


def _ignored(message: Mapping[str, Any]) -> list[str]:
    return [name for name, value in message.items() if name not in _MESSAGE_FIELDS and value is not None]


def _from_single_turn(row: Mapping[str, Any], messages_fields: Sequence[str], origin: str) -> Conversation:
    instruction = _only(row, INSTRUCTION_FIELDS, origin)
    response = _only(row, RESPONSE_FIELDS, origin)
    if instruction is None or response is None:
        wanted = " or ".join(map(repr, messages_fields))
        wanted += f", or {'|'.join(INSTRUCTION_FIELDS)} with {'|'.join(RESPONSE_FIELDS)}"
        raise ConversationError(
            f"{origin}: the row has the fields {', '.join(map(repr, row)) or '(none)'}, but a conversation needs"
            f" {wanted};"
            " rename the fields, or name the messages with sft_messages_field",
            reason="fields",
        )
    if row.get("tools") or row.get("functions"):
        raise ConversationError(
            f"{origin}: a single-turn row has tools, which only rows with messages can have; write it as messages",
            reason="tools",
        )
    input_text = _only(row, INPUT_FIELDS, origin)
    system = _only(row, SYSTEM_FIELDS, origin)
    try:
        history = _history(row, origin)
        return single_turn(
            instruction, response, input_text=input_text, system_prompt=system, history=history, origin=origin
        )
    except ConversationError as exc:
        if str(exc).startswith(origin):
            raise
        raise ConversationError(f"{origin}: {exc}", reason=exc.reason) from exc


def _history(row: Mapping[str, Any], origin: str) -> list[Message]:
    pairs = row.get("history") or ()
    if not isinstance(pairs, list | tuple):
        raise ConversationError(
            f"{origin}: history is a {_type_name(pairs)}, not a list of pairs [user, assistant]; repair the row",
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
    user = Message(role="user", content=instruction)
    if input_text:
        user = Message(role="user", content=f"{instruction}\n\n{input_text}", input_start=len(instruction) + 2)
    messages = [Message(role="system", content=system_prompt)] if system_prompt else []
    messages += [*history, user, Message(role="assistant", content=response)]
    return Conversation(messages=tuple(messages), origin=origin)


def _only(row: Mapping[str, Any], names: Sequence[str], origin: str) -> str | None:
    """The one string among fields that mean the same."""
    present = [name for name in names if row.get(name) is not None]
    if not present:
        return None
    if len(present) > 1:
        raise ConversationError(
            f"{origin}: {' and '.join(map(repr, present))} mean the same, and the row has both; keep one",
            reason="ambiguous",
        )
    value = row[present[0]]
    if not isinstance(value, str):
        raise ConversationError(
            f"{origin}: {present[0]!r} is a {_type_name(value)}, not a string; repair the row", reason="field_type"
        )
    return value


def _content(message: Mapping[str, Any], place: str, *, needed: bool) -> str:
    content = message.get("content")
    if message.get("refusal"):
        raise ConversationError(
            f"{place}: has a refusal beside its content; move the text you want to train into content", reason="refusal"
        )
    if content is None:
        if not needed:
            return ""
        state = "null" if "content" in message else "missing"
        raise ConversationError(
            f"{place}: content is {state}, and there are no tool_calls; write a text, empty if you mean it",
            reason="content",
        )
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise ConversationError(
            f"{place}: content is a {_type_name(content)}, not a string or a list of text parts; repair the row",
            reason="content",
        )
    return "".join(_text_part(part, f"{place}: content[{i}]") for i, part in enumerate(content))


def _text_part(part: object, place: str) -> str:
    if isinstance(part, Mapping) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    found = f"a part of type {part.get('type')!r}" if isinstance(part, Mapping) else f"a {_type_name(part)}"
    raise ConversationError(
        f'{place}: is {found}, not {{"type": "text", "text": ...}}; only text can be trained here',
        reason="content_part",
    )


def _tool_calls(message: Mapping[str, Any], place: str) -> tuple[ToolCall, ...]:
    calls = message.get("tool_calls") or ()
    legacy = message.get("function_call")
    if not isinstance(calls, list | tuple):
        raise ConversationError(
            f"{place}: tool_calls is a {_type_name(calls)}, not a list; repair the row", reason="tool_calls"
        )
    if legacy is not None:
        if calls:
            raise ConversationError(
                f"{place}: has both function_call and tool_calls; keep tool_calls", reason="tool_calls"
            )
        calls = [legacy]
    return tuple(_tool_call(call, f"{place}: tool_calls[{i}]") for i, call in enumerate(calls))


def _tool_call(call: object, place: str) -> ToolCall:
    function = call.get("function") or call if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ConversationError(
            f'{place}: is not {{"function": {{"name": ..., "arguments": ...}}}}; repair the row', reason="tool_calls"
        )
    assert isinstance(call, Mapping)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = load_json(arguments or "{}")
        except ValueError as exc:
            raise ConversationError(
                f"{place}: arguments of {function['name']!r} are not valid JSON ({exc}); repair or quarantine the row",
                reason="tool_arguments",
            ) from exc
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise ConversationError(
            f"{place}: arguments of {function['name']!r} are a JSON {_type_name(arguments)}, not an object; repair"
            " the row",
            reason="tool_arguments",
        )
    call_id = call.get("id")
    return ToolCall(function["name"], _canonical_json(arguments, place), id=None if call_id is None else str(call_id))


def _tools(row: Mapping[str, Any], origin: str) -> tuple[str, ...]:
    name = "functions" if row.get("tools") is None else "tools"
    tools = row.get(name)
    if isinstance(tools, str):
        try:
            tools = load_json(tools) if tools.strip() else None
        except ValueError as exc:
            raise ConversationError(
                f"{origin}: {name} is not valid JSON ({exc}); repair the row", reason="tools"
            ) from exc
    if tools is None:
        return ()
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
        raise ConversationError(
            f"{origin}: {name} is not a list of tool definitions (objects); repair the row", reason="tools"
        )
    if name == "functions":
        tools = [{"type": "function", "function": function} for function in tools]
    return tuple(_canonical_json(tool, f"{origin}: {name}") for tool in tools)


def _weight(message: Mapping[str, Any], place: str) -> float | None:
    weight = message.get("weight")
    if weight is None:
        return None
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not -1e38 < weight < 1e38:
        # A weight is a float32 later, which holds no larger number.
        raise ConversationError(f"{place}: weight is {weight!r:.40}, not a number; write 0 or 1", reason="weight")
    return float(weight)


def _optional_string(message: Mapping[str, Any], name: str, place: str) -> str | None:
    value = message.get(name)
    if value is None or isinstance(value, str):
        return value
    raise ConversationError(f"{place}: {name} is a {_type_name(value)}, not a string; repair the row", reason=name)


def _canonical_json(value: object, place: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as exc:
        raise ConversationError(f"{place}: is not JSON ({exc}); repair the row", reason="not_json") from exc


def _type_name(value: object) -> str:
    names = {
        dict: "object",
        list: "list",
        tuple: "list",
        str: "string",
        bool: "boolean",
        int: "number",
        float: "number",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)
