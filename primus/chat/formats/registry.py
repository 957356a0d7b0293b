# SPDX-License-Identifier: Apache-2.0
"""Every source format by its name, and which of them a row has."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from primus.chat.formats import alpaca, openai, sharegpt
from primus.chat.formats.alpaca import INSTRUCTION_FIELDS, RESPONSE_FIELDS
from primus.chat.formats.options import AUTO, SourceOptions
from primus.chat.formats.values import type_name
from primus.chat.messages import Conversation
from primus.chat.reading import Row
from primus.errors import ConversationError

UNKNOWN: Final = "unknown"


@dataclass(frozen=True, slots=True)
class SourceFormat:
    """One way in which conversations stand in rows.

    Attributes:
        name: What users call it.
        summary: What its rows look like, in a line.
        rank: Of the formats that recognise a row, the one with the lowest rank reads it.
        recognises: Whether a row looks like one of this format; takes the row and the options, and looks at no more
            than names and types.
        parse: Reads a row as its conversations; takes the row, its origin and the options.
    """

    name: str
    summary: str
    rank: int
    recognises: Callable[[object, SourceOptions], bool]
    parse: Callable[[Any, str, SourceOptions], tuple[Conversation, ...]]


_ALL = (
    SourceFormat(
        "openai", "messages with role and content, or a bare list of them", 2, openai.recognises, openai.parse
    ),
    SourceFormat("sharegpt", "conversations with from and value", 2, sharegpt.recognises, sharegpt.parse),
    SourceFormat("alpaca", "instruction, input and output; query and response", 4, alpaca.recognises, alpaca.parse),
)
FORMATS: Mapping[str, SourceFormat] = {source.name: source for source in _ALL}


def recognise(row: object, options: SourceOptions, *, origin: str) -> SourceFormat:
    """The format that reads a row.

    Args:
        row: The decoded row.
        options: How it is read.
        origin: What an error begins with.

    Returns:
        The format that the options name, or with `auto` the one that recognises the row.

    Raises:
        ConversationError: If none does, or two of the same rank do.
        ValueError: If the options name a format that does not exist.
    """
    if options.format != AUTO:
        if options.format not in FORMATS:
            raise ValueError(f"format is {options.format!r}, not one of {AUTO}, {', '.join(FORMATS)}")
        return FORMATS[options.format]
    found = [source for source in _ALL if source.recognises(row, options)]
    if not found:
        raise _unknown(row, options, origin)
    first = found[0]
    if len(found) > 1:
        rivals = [source for source in found if source.rank == first.rank]
        if len(rivals) > 1:
            raise ConversationError(
                f"{origin}: the row looks like {' and like '.join(source.name for source in rivals)}; name the format,"
                " or drop the fields that do not count",
                reason="ambiguous",
            )
    return first


def parse_row(row: object, origin: str, options: SourceOptions) -> tuple[Conversation, ...]:
    """Read one row.

    Args:
        row: The decoded row.
        origin: Where it stands.
        options: How it is read.

    Returns:
        Its conversations: one, or the branches of a tree.

    Raises:
        ConversationError: If it is not valid; the message begins with the origin.
    """
    source = recognise(row, options, origin=origin)
    try:
        return source.parse(row, origin, options)
    except RecursionError as exc:
        raise ConversationError(f"{origin}: brackets are nested too deeply; repair the row", reason="not_json") from exc


def detect_formats(rows: Iterable[Row], options: SourceOptions | None = None) -> Counter[str]:
    """Which formats rows have, for saying what was found.

    Args:
        rows: Rows of a file, such as the first few hundred.
        options: How they are read.

    Returns:
        How many rows each format would read; `unknown` counts those that none does, or that are not even rows.
    """
    options = options or SourceOptions()
    found: Counter[str] = Counter()
    for row in rows:
        try:
            name = UNKNOWN if row.error is not None else recognise(row.value, options, origin=row.origin).name
        except ConversationError:
            name = UNKNOWN
        found[name] += 1
    return found


def _unknown(row: object, options: SourceOptions, origin: str) -> ConversationError:
    if not isinstance(row, Mapping):
        return ConversationError(
            f"{origin}: the row is a {type_name(row)}, not an object; write one object per row", reason="not_an_object"
        )
    wanted = " or ".join(map(repr, options.messages_fields))
    wanted += f", or {'|'.join(INSTRUCTION_FIELDS)} with {'|'.join(RESPONSE_FIELDS)}"
    return ConversationError(
        f"{origin}: the row has the fields {', '.join(map(repr, row)) or '(none)'}, but a conversation needs {wanted};"
        " rename the fields, or name the messages with sft_messages_field",
        reason="fields",
    )
