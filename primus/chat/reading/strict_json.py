# SPDX-License-Identifier: Apache-2.0
"""JSON, decoded without losing or inventing anything."""

import json
from typing import Any


def load_json(text: str) -> Any:
    """Decode JSON strictly: a repeated key or a number like NaN is refused, where `json.loads` loses or invents data.

    Args:
        text: JSON text.

    Returns:
        The decoded value.

    Raises:
        ValueError: If the text is not JSON (then a `json.JSONDecodeError`), repeats a key, has NaN or Infinity, or is
            nested too deeply to be read.
    """
    try:
        if text.startswith("\ufeff"):
            raise json.JSONDecodeError("Unexpected UTF-8 BOM (decode using utf-8-sig)", text, 0)
        return _DECODER.decode(text)
    except RecursionError as exc:
        raise ValueError("brackets are nested too deeply") from exc


def load_json_at(text: str, position: int) -> tuple[Any, int]:
    """Decode the JSON value that begins at a position, as strictly as `load_json`.

    Args:
        text: Text that holds JSON.
        position: Where the value begins; no whitespace is skipped.

    Returns:
        The decoded value, and the position behind it.

    Raises:
        ValueError: As `load_json` does.

    Examples:
        >>> load_json_at('[{"a": 1}, 2]', 1)
        ({'a': 1}, 9)
    """
    try:
        return _DECODER.raw_decode(text, position)
    except RecursionError as exc:
        raise ValueError("brackets are nested too deeply") from exc


def describe_json_error(error: ValueError) -> str:
    """What is wrong with a line of JSON.

    Args:
        error: What `load_json` raised.

    Returns:
        The problem, with its column where there is one.
    """
    return f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {repeated!r} stands twice in one object")
    return unique


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant)
