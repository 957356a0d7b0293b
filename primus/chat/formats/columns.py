# SPDX-License-Identifier: Apache-2.0
"""Rows of which a declared column map says where everything stands; nothing is recognised here."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from primus.chat.formats import alpaca, prompt_completion
from primus.chat.formats.column_map import ColumnMap
from primus.chat.formats.flags import refuse_rejected
from primus.chat.formats.message_reading import Dialect, read_message, require_list, with_system
from primus.chat.formats.notes import Notes
from primus.chat.formats.options import SourceOptions
from primus.chat.formats.sharegpt import ROLES
from primus.chat.formats.tools import read_tools
from primus.chat.formats.turns import is_identifier, join_turns, not_an_identifier
from primus.chat.formats.values import optional_string, type_name
from primus.chat.messages import Conversation
from primus.chat.reading import Row
from primus.errors import ConversationError

_DIALECT = Dialect(("role",), ("content",), ROLES)
_OF_MESSAGE = ("role", "content", "name", "tool_calls", "tool_call_id", "weight")
_OF_ROW = ("system", "tools")


def recognises(row: object, options: SourceOptions) -> bool:
    """Never: the format is chosen by giving a column map."""
    del row, options
    return False


def group(row: object, options: SourceOptions) -> str | None:
    """The conversation that a row is a turn of, if the map names a column for it."""
    path = options.column_map.conversation if options.column_map else None
    if path is None or not isinstance(row, Mapping):
        return None
    value = _get(row, path)
    return f"{path}={value!r}" if is_identifier(value) else None


def parse(row: Any, origin: str, options: SourceOptions) -> tuple[Conversation, ...]:
    """Read a row as one conversation."""
    column_map, options = _with_roles(options)
    if not isinstance(row, Mapping):
        raise ConversationError(
            f"{origin}: the row is a {type_name(row)}, not an object; write one object per row", reason="not_an_object"
        )
    if column_map.conversation is not None:
        identifier = _get(row, column_map.conversation)
        alone = identifier is not None
        if alone and not is_identifier(identifier):
            raise not_an_identifier(identifier, column_map.conversation, origin)
        raise ConversationError(
            f"{origin}: the row is one turn of a conversation; read the file with read_conversations, which joins the"
            " rows"
            if alone
            else f"{origin}: {column_map.conversation!r} is missing; the column says which conversation a turn belongs"
            " to",
            reason="part_of_a_conversation" if alone else "fields",
        )
    if column_map.label is not None:
        _refuse_rejected(row, origin, column_map.label)
    if column_map.messages is None:
        return (_prompt(row, origin, options, column_map),)
    notes = Notes(origin, options)
    parts = _taken(row, {name: getattr(column_map, name) for name in ("messages", *_OF_ROW, "label")}, notes)
    if parts.get("messages") is None:
        raise ConversationError(
            f"{origin}: {column_map.messages!r} is missing or null, where the column map has the messages; repair the"
            " row",
            reason="fields",
        )
    tools = read_tools(parts, notes, wrap=True)
    messages = []
    for turn, item in enumerate(require_list(parts["messages"], column_map.messages, origin)):
        place = f"{origin}: turn {turn}"
        fields = _message(item, column_map, notes) if isinstance(item, Mapping) else item
        messages.append(read_message(fields, notes, place, dialect=_DIALECT))
    system = optional_string(parts, "system", origin)
    return (notes.conversation(with_system(messages, system, origin), tools=tools),)


def parse_rows(rows: Sequence[Row], options: SourceOptions) -> tuple[Conversation, ...]:
    """Read the turns of one conversation."""
    column_map, options = _with_roles(options)
    assert column_map.conversation is not None
    notes = Notes(rows[0].origin, options)
    turns = []
    named = {name: getattr(column_map, name) for name in (*_OF_ROW, "conversation", "turn", "label")}
    known = {name: path for name, path in named.items() if path is not None}
    for row in rows:
        if column_map.label is not None:
            _refuse_rejected(row.value, rows[0].origin if row is rows[0] else f"{rows[0].origin}: {row.origin}",
                             column_map.label)  # fmt: skip
        fields = _message(row.value, column_map, notes, others=known)
        for name in (*_OF_ROW, "turn"):
            if name in known:
                if fields.get(name) is not None:
                    notes.ignored.add(name)
                fields[name] = _get(row.value, known[name])
        turns.append(fields)
    joined = join_turns(turns, [row.origin for row in rows], options, id_column=None)
    return (replace(joined, ignored_fields=tuple(sorted({*joined.ignored_fields, *notes.ignored}))),)


def fields_of_row(row: Mapping[str, Any], column_map: ColumnMap) -> frozenset[str]:
    """The fields of a row in which a path of the map begins, so that they mean what the map says."""
    paths = (getattr(column_map, name) for name in ("messages", "prompt", "response", "input", "history", *_OF_ROW,
                                                    "conversation", "turn", "label"))  # fmt: skip
    return frozenset(_head(row, path) for path in paths if path is not None)


def _refuse_rejected(row: Mapping[str, Any], origin: str, label: str) -> None:
    refuse_rejected({label: _get(row, label)}, origin, names=(label,), is_declared=True)


def _with_roles(options: SourceOptions) -> tuple[ColumnMap, SourceOptions]:
    assert options.column_map is not None
    return options.column_map, replace(options, roles={**options.column_map.roles, **options.roles})


def _prompt(row: Mapping[str, Any], origin: str, options: SourceOptions, column_map: ColumnMap) -> Conversation:
    notes = Notes(origin, options)
    names = ("prompt", "response", "input", "history", *_OF_ROW, "label")
    parts = _taken(row, {name: getattr(column_map, name) for name in names}, notes)
    for name in ("prompt", "response"):
        if parts.get(name) is None:
            raise ConversationError(
                f"{origin}: {getattr(column_map, name)!r} is missing or null, where the column map has the {name};"
                " repair the row",
                reason="fields",
            )
        if not isinstance(parts[name], str | list | tuple):
            raise ConversationError(
                f"{origin}: {getattr(column_map, name)!r} is a {type_name(parts[name])}, not a string or a list of"
                " messages; repair the row",
                reason="field_type",
            )
    parts.pop("label", None)
    is_single = isinstance(parts["prompt"], str) and isinstance(parts["response"], str) and not parts.get("tools")
    if not is_single and (parts.get("input") or parts.get("history")):
        raise ConversationError(
            f"{origin}: has an input or a history beside messages or tools; write it as messages", reason="field_type"
        )
    plain = {name: value for name, value in parts.items() if value is not None}
    parse_plain = alpaca.parse if is_single else prompt_completion.parse
    [conversation] = parse_plain(plain, origin, options)
    return replace(conversation, ignored_fields=tuple(sorted({*conversation.ignored_fields, *notes.ignored})))


def _message(
    item: Mapping[str, Any],
    column_map: ColumnMap,
    notes: Notes,
    *,
    others: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """A message in the words of OpenAI; fields that are not mapped keep their names."""
    paths = {name: path for name in _OF_MESSAGE if (path := getattr(column_map, name)) is not None}
    parts = _taken(item, {**paths, **(others or {})}, notes, rest=False)
    taken = {_head(item, path) for path in (*paths.values(), *(others or {}).values())}
    fields = {name: value for name, value in item.items() if name not in taken}
    for name in paths:
        if fields.get(name) is not None:
            notes.ignored.add(name)
        fields[name] = parts.get(name)
    if "weight" in paths and isinstance(fields["weight"], bool):
        fields["weight"] = float(fields["weight"])
    if isinstance(fields["role"], int) and not isinstance(fields["role"], bool):
        fields["role"] = str(fields["role"])
    return fields


def _taken(
    row: Mapping[str, Any], paths: Mapping[str, str | None], notes: Notes, *, rest: bool = True
) -> dict[str, Any]:
    """What stands at the paths; what stands beside them is noted."""
    used = [path for path in paths.values() if path is not None]
    for path in used:
        head, _, tail = path.partition(".")
        siblings = row.get(head)
        if tail and path not in row and isinstance(siblings, Mapping):
            known = {other.partition(".")[2].split(".")[0] for other in used if other.startswith(f"{head}.")}
            notes.ignore_others(siblings, known, prefix=f"{head}.")
    if rest:
        notes.ignore_others(row, {_head(row, path) for path in used})
    return {name: _get(row, path) for name, path in paths.items() if path is not None}


def _head(row: Mapping[str, Any], path: str) -> str:
    """The field of the row in which a path begins; a name may have a dot in it."""
    return path if path in row else path.partition(".")[0]


def _get(row: Mapping[str, Any], path: str) -> Any:
    if path in row:
        return row[path]
    value: Any = row
    for name in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value
