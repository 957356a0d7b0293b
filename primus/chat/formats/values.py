# SPDX-License-Identifier: Apache-2.0
"""Values of decoded JSON: their names, their canonical text, and fields that may be there."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from primus.chat.reading import load_json
from primus.errors import ConversationError

_TYPE_NAMES = {
    type(None): "null",
    dict: "object",
    list: "list",
    tuple: "list",
    str: "string",
    bool: "boolean",
    int: "number",
    float: "number",
}


def type_name(value: object) -> str:
    """What JSON calls the type of a value."""
    return _TYPE_NAMES.get(type(value), type(value).__name__)


def canonical_json(value: object, place: str) -> str:
    """JSON text with Python's default separators and without ASCII escapes, as a chat template's `tojson` writes it.

    Args:
        value: A decoded value.
        place: What an error begins with.

    Returns:
        The text.

    Raises:
        ConversationError: If the value is not JSON.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as exc:
        raise ConversationError(f"{place}: is not JSON ({exc}); repair the row", reason="not_json") from exc


def decode_json(text: str, what: str, *, reason: str) -> Any:
    """Decode JSON that stands in a string of a row.

    Args:
        text: The string.
        what: What it is, with its place; an error begins with it.
        reason: The name of the rule that is broken if it is no JSON.

    Returns:
        The decoded value.

    Raises:
        ConversationError: If it is not JSON.
    """
    try:
        return load_json(text)
    except ValueError as exc:
        raise ConversationError(f"{what} not valid JSON ({exc}); repair or quarantine the row", reason=reason) from exc


def optional_string(fields: Mapping[str, Any], name: str, place: str) -> str | None:
    """A string that may be missing or null.

    Args:
        fields: A decoded object.
        name: The field.
        place: What an error begins with.

    Returns:
        The string, or None.

    Raises:
        ConversationError: If it is something else.
    """
    value = fields.get(name)
    if value is None or isinstance(value, str):
        return value
    raise ConversationError(f"{place}: {name} is a {type_name(value)}, not a string; repair the row", reason=name)


def only_field(fields: Mapping[str, Any], names: Sequence[str], place: str) -> str | None:
    """The one field that is there, among fields that mean the same.

    Args:
        fields: A decoded object.
        names: The fields.
        place: What an error begins with.

    Returns:
        The name of the field that is not null, or None.

    Raises:
        ConversationError: If there are several.
    """
    present = [name for name in names if fields.get(name) is not None]
    if len(present) > 1:
        raise ConversationError(
            f"{place}: {' and '.join(map(repr, present))} mean the same, and the row has both; keep one",
            reason="ambiguous",
        )
    return present[0] if present else None


def only_string(fields: Mapping[str, Any], names: Sequence[str], place: str) -> str | None:
    """The one string among fields that mean the same.

    Args:
        fields: A decoded object.
        names: The fields.
        place: What an error begins with.

    Returns:
        The string, or None if all are missing or null.

    Raises:
        ConversationError: If there are several, or it is no string.
    """
    name = only_field(fields, names, place)
    if name is None:
        return None
    value = fields[name]
    if not isinstance(value, str):
        raise ConversationError(
            f"{place}: {name!r} is a {type_name(value)}, not a string; repair the row", reason="field_type"
        )
    return value
