# SPDX-License-Identifier: Apache-2.0
"""Tool definitions and tool calls, as the dialects of sources write them."""

from collections.abc import Mapping, Sequence
from typing import Any

from primus.chat.formats.notes import Notes
from primus.chat.formats.values import canonical_json, decode_json, type_name
from primus.chat.messages import ToolCall
from primus.errors import ConversationError

_CALL_FIELDS = frozenset({"id", "type", "function", "name", "arguments"})
NULL_ARGUMENTS = "tool_calls.arguments (null, and not a parameter)"
"""What is noted of arguments that only a table of objects can have added."""


def read_tools(row: Mapping[str, Any], notes: Notes, *, wrap: bool = False) -> tuple[str, ...]:
    """The tool definitions of a row: its `tools`, or its `functions`, which have no wrapper.

    Args:
        row: The row.
        notes: What is known about the row; the tools' parameters are added.
        wrap: Whether a bare function definition among `tools` gets its wrapper, too.

    Returns:
        Each definition as canonical JSON; those with an `input_schema`, as Anthropic has it, in the form of OpenAI.

    Raises:
        ConversationError: If it is not a list of objects, nor JSON of one.
    """
    name = "functions" if row.get("tools") is None else "tools"
    tools = row.get(name)
    if isinstance(tools, str):
        tools = decode_json(tools, f"{notes.origin}: {name} is", reason="tools") if tools.strip() else None
    if tools is None:
        return ()
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
        raise ConversationError(
            f"{notes.origin}: {name} is not a list of tool definitions (objects); repair the row", reason="tools"
        )
    tools = [
        _from_anthropic(tool, notes, f"{notes.origin}: {name}[{i}]") if is_anthropic_tool(tool) else tool
        for i, tool in enumerate(tools)
    ]
    definitions = [
        {"type": "function", "function": tool}
        if (name == "functions" and tool.get("function") is None) or (wrap and _is_bare(tool))
        else tool
        for tool in tools
    ]
    texts = tuple(canonical_json(definition, f"{notes.origin}: {name}") for definition in definitions)
    for definition in definitions:
        _remember_parameters(definition, notes)
    return texts


def is_anthropic_tool(tool: object) -> bool:
    """Whether a definition has its schema where Anthropic has it."""
    return isinstance(tool, Mapping) and isinstance(tool.get("input_schema"), Mapping) and tool.get("function") is None


def _from_anthropic(tool: Mapping[str, Any], notes: Notes, place: str) -> Mapping[str, Any]:
    if not isinstance(tool.get("name"), str):
        raise ConversationError(f"{place}: has an input_schema and no name; repair the row", reason="tools")
    notes.ignore_others(tool, ("name", "description", "input_schema", "type"), prefix="tools.")
    function = {"name": tool["name"], "description": tool.get("description"), "parameters": tool["input_schema"]}
    return {"type": "function", "function": {key: value for key, value in function.items() if value is not None}}


def _is_bare(tool: Mapping[str, Any]) -> bool:
    return isinstance(tool.get("name"), str) and tool.get("function") is None and tool.get("type") is None


def _remember_parameters(definition: Mapping[str, Any], notes: Notes) -> None:
    function = definition.get("function") or definition
    if isinstance(function, Mapping) and isinstance(function.get("name"), str):
        schema = function.get("parameters")
        properties = schema.get("properties") if isinstance(schema, Mapping) else None
        if isinstance(properties, Mapping):
            notes.parameters[function["name"]] = properties


def read_tool_calls(message: Mapping[str, Any], notes: Notes, place: str) -> tuple[ToolCall, ...]:
    """The calls of a message: its `tool_calls`, or the one in its `function_call`.

    Args:
        message: The message.
        notes: What is known about the row.
        place: What an error begins with.

    Returns:
        The calls; none if there are none.

    Raises:
        ConversationError: If a call is not valid, or the message has both fields.
    """
    calls = message.get("tool_calls") or ()
    legacy = message.get("function_call")
    if isinstance(calls, str):
        calls = decode_json(calls, f"{place}: tool_calls is", reason="tool_calls") if calls.startswith("[") else calls
    if not isinstance(calls, list | tuple):
        raise ConversationError(
            f"{place}: tool_calls is a {type_name(calls)}, not a list; repair the row", reason="tool_calls"
        )
    if legacy is not None:
        if calls:
            raise ConversationError(
                f"{place}: has both function_call and tool_calls; keep tool_calls", reason="tool_calls"
            )
        calls = [legacy]
    return tuple(read_tool_call(call, notes, f"{place}: tool_calls[{i}]") for i, call in enumerate(calls))


def read_tool_call(call: object, notes: Notes, place: str) -> ToolCall:
    """One call, with or without the wrapper `{"function": ...}`.

    Args:
        call: The decoded call.
        notes: What is known about the row.
        place: What an error begins with.

    Returns:
        The call.

    Raises:
        ConversationError: If it has no name, or its arguments are neither an object nor JSON of one.
    """
    function = call.get("function") or call if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ConversationError(
            f'{place}: is not {{"function": {{"name": ..., "arguments": ...}}}}; repair the row', reason="tool_calls"
        )
    assert isinstance(call, Mapping)
    if not call.keys() <= _CALL_FIELDS:
        notes.ignore_others(call, _CALL_FIELDS, prefix="tool_calls.")
    if function is not call:
        notes.ignore_others(function, ("name", "arguments"), prefix="tool_calls.function.")
    call_id = call.get("id")
    return tool_call(
        function["name"], function.get("arguments"), notes, place, call_id=None if call_id is None else str(call_id)
    )


def tool_call(name: str, arguments: object, notes: Notes, place: str, *, call_id: str | None = None) -> ToolCall:
    """A call with its arguments in canonical JSON.

    Args:
        name: The function's name.
        arguments: An object, JSON of one, or None.
        notes: What is known about the row.
        place: What an error begins with.
        call_id: The call's identifier.

    Returns:
        The call. An argument that is null, and that the row's definition of the tool does not declare, is left out:
        tables of objects (Arrow) give every call the arguments of all others. In JSON text nothing is left out.

    Raises:
        ConversationError: If the arguments are neither.
    """
    if isinstance(arguments, str):
        arguments = decode_json(arguments or "{}", f"{place}: arguments of {name!r:.60} are", reason="tool_arguments")
    elif isinstance(arguments, Mapping) and None in arguments.values():
        declared = notes.parameters.get(name)
        if declared is not None:
            kept = {key: value for key, value in arguments.items() if value is not None or key in declared}
            if len(kept) < len(arguments):
                notes.ignored.add(NULL_ARGUMENTS)
                arguments = kept
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise ConversationError(
            f"{place}: arguments of {name!r:.60} are a JSON {type_name(arguments)}, not an object; repair the row",
            reason="tool_arguments",
        )
    return ToolCall(name, canonical_json(arguments, place), id=call_id)


def calls_of_text(text: str, notes: Notes, place: str) -> tuple[ToolCall, ...]:
    """The calls that stand as JSON in the text of a message: one call, or a list of calls.

    Args:
        text: The text.
        notes: What is known about the row.
        place: What an error begins with.

    Returns:
        At least one call.

    Raises:
        ConversationError: If the text is not that.
    """
    decoded = decode_json(text, f"{place}: the function call is", reason="function_call")
    calls: Sequence[object] = decoded if isinstance(decoded, list) else [decoded]
    if not calls:
        raise ConversationError(f"{place}: the function call is an empty list; repair the row", reason="function_call")
    return tuple(read_tool_call(call, notes, f"{place}: call {i}") for i, call in enumerate(calls))
