# SPDX-License-Identifier: Apache-2.0
"""Every source format by its name, and which of them a row has."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from primus.chat.formats import (
    alpaca,
    anthropic,
    columns,
    hh,
    llamafactory,
    oasst,
    openai,
    prompt_completion,
    questions,
    sharegpt,
    swe_agent,
    tooltalk,
    turns,
    xtuner,
)
from primus.chat.formats.alpaca import INSTRUCTION_FIELDS, RESPONSE_FIELDS, is_messages
from primus.chat.formats.flags import ROW_FLAGS, take_flags, with_weight
from primus.chat.formats.options import AUTO, SourceOptions
from primus.chat.formats.plain_rows import read_plain
from primus.chat.formats.values import type_name
from primus.chat.messages import Conversation
from primus.chat.reading import Row
from primus.errors import ConversationError

UNKNOWN: Final = "unknown"
# Fields that a message lists; a row may have thousands.
_MAX_NAMED = 12


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
        fields: Every row of the format has one of them; None if that depends on the options.
        takes_lists: Whether a row may be a list.
        group: The name of what a row is a part of, where several rows are one conversation or one tree; None for a row
            that stands alone.
        parse_rows: Reads the rows of one group.
    """

    name: str
    summary: str
    rank: int
    recognises: Callable[[object, SourceOptions], bool]
    parse: Callable[[Any, str, SourceOptions], tuple[Conversation, ...]]
    fields: frozenset[str] | None = None
    takes_lists: bool = False
    group: Callable[[object, SourceOptions], str | None] | None = None
    parse_rows: Callable[[Sequence[Row], SourceOptions], tuple[Conversation, ...]] | None = None


def _format(
    name: str,
    rank: int,
    module: Any,
    summary: str,
    *,
    fields: Iterable[str] | None = None,
    takes_lists: bool = False,
) -> SourceFormat:
    return SourceFormat(
        name,
        summary,
        rank,
        module.recognises,
        module.parse,
        fields=None if fields is None else frozenset(fields),
        takes_lists=takes_lists,
        group=getattr(module, "group", None),
        parse_rows=getattr(module, "parse_rows", None),
    )


# In the order of their ranks: a special form of messages, lists of messages, transcripts, single turns, no answers.
_ALL = (
    _format("columns", 0, columns, "anything, with a column map that says where everything stands", fields=()),
    _format("anthropic", 1, anthropic, "messages with blocks such as tool_use, system beside them", takes_lists=True),
    _format("llamafactory", 1, llamafactory, "messages with content parts of type and value, loss_weight"),
    _format("openai", 2, openai, "messages with role and content, or the bare list", takes_lists=True),
    _format(
        "sharegpt",
        2,
        sharegpt,
        "conversations with from and value, system and tools",
        takes_lists=True,
    ),
    _format("xtuner", 2, xtuner, "conversation with input and output", fields=(xtuner.FIELD,)),
    _format("tooltalk", 2, tooltalk, "conversation with role, text and apis", fields=(tooltalk.FIELD,)),
    _format("swe_agent", 2, swe_agent, "history and trajectory of an agent", fields=(swe_agent.FIELD,)),
    _format("oasst", 2, oasst, "prompt with replies, or a row per message of a tree", fields=oasst.FIELDS),
    _format("turns", 2, turns, "a row per turn with conversation_id, role and content"),
    _format("hh", 3, hh, "a text with Human: and Assistant:, as chosen", fields=hh.FIELDS),
    _format(
        "alpaca", 4, alpaca, "instruction, input and output; query and response; history", fields=alpaca.RESPONSE_FIELDS
    ),
    _format(
        "prompt_completion",
        4,
        prompt_completion,
        "prompt and completion, or prompt and chosen",
        fields=prompt_completion.FIELDS,
    ),
    _format(
        "questions", 5, questions, "questions of benchmarks, which have no answers to train", fields=questions.FIELDS
    ),
)
FORMATS: Final[Mapping[str, SourceFormat]] = {source.name: source for source in _ALL}
# A row that has none of these is no part of a group, unless the options name another column.
GROUP_COLUMNS: Final = (*turns.ID_COLUMNS, oasst.TREE_COLUMN)
_GROUPED = tuple(source for source in _ALL if source.group is not None)
_OF_LISTS = tuple(source for source in _ALL if source.takes_lists)


def recognise(row: object, options: SourceOptions, *, origin: str) -> SourceFormat:
    """The format that reads a row.

    Args:
        row: The decoded row.
        options: How it is read.
        origin: What an error begins with.

    Returns:
        That of the column map if there is one, else the format that the options name, or with `auto` the one that
        recognises the row.

    Raises:
        ConversationError: If none does, or two of the same rank do.
        ValueError: If the options name a format that does not exist.
    """
    if options.column_map is not None:
        return FORMATS["columns"]
    if options.format != AUTO:
        if options.format not in FORMATS:
            raise ValueError(f"format is {options.format!r}, not one of {AUTO}, {', '.join(FORMATS)}")
        return FORMATS[options.format]
    names = row.keys() if isinstance(row, Mapping) else frozenset()
    found = [
        source
        for source in (_ALL if names else _OF_LISTS)
        if (source.fields is None or not names or not names.isdisjoint(source.fields))
        and source.recognises(row, options)
    ]
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
    usual = read_plain(row, origin, options)
    if usual is not None:
        return (usual,)
    source = recognise(row, options, origin=origin)
    if not isinstance(row, Mapping) and not (source.takes_lists and isinstance(row, list | tuple)):
        raise _not_an_object(row, origin)
    with _problems_at(origin):
        if not isinstance(row, Mapping) or row.keys().isdisjoint(ROW_FLAGS):
            return source.parse(row, origin, options)
        others = set(options.messages_fields)
        if options.column_map is not None:
            others |= columns.fields_of_row(row, options.column_map)
        plain, weight = take_flags(row, origin, others=others)
        return tuple(with_weight(conversation, weight) for conversation in source.parse(plain, origin, options))


def parse_group(source: SourceFormat, rows: Sequence[Row], options: SourceOptions) -> tuple[Conversation, ...]:
    """Read the rows of one group.

    Args:
        source: The format that they have.
        rows: The rows, in order; all can be decoded.
        options: How they are read.

    Returns:
        Their conversations: one, or the branches of a tree.

    Raises:
        ConversationError: If they are not valid; the message begins with the origin of the first.
    """
    assert source.parse_rows is not None
    with _problems_at(rows[0].origin):
        return source.parse_rows(rows, options)


@contextmanager
def _problems_at(origin: str) -> Iterator[None]:
    """Let every problem begin with the place of the row."""
    try:
        yield
    except RecursionError as exc:
        raise ConversationError(f"{origin}: brackets are nested too deeply; repair the row", reason="not_json") from exc
    except ConversationError as exc:
        if str(exc).startswith(f"{origin}: "):
            raise
        raise ConversationError(f"{origin}: {exc}", reason=exc.reason) from exc


def group_of(row: object, options: SourceOptions) -> tuple[SourceFormat, str] | None:
    """What a row is a part of, if it is one of several that make a conversation or a tree.

    Args:
        row: The decoded row.
        options: How it is read.

    Returns:
        The format and the name of the group, or None for a row that stands alone.
    """
    has_usual_names = options.column_map is None and options.conversation_id is None
    if has_usual_names and (not isinstance(row, Mapping) or row.keys().isdisjoint(GROUP_COLUMNS)):
        return None
    for source in _GROUPED:
        name = source.group(row, options) if source.group is not None else None
        if name is not None:
            try:
                return (source, name) if recognise(row, options, origin="") is source else None
            except ConversationError:
                return None
    return None


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
        return _not_an_object(row, origin)
    names = [f"{name!r:.60}" for name in row]
    fields = f"{', '.join(names[:_MAX_NAMED])}{', ...' if len(names) > _MAX_NAMED else ''}" or "(none)"
    wanted = " or ".join(map(repr, options.messages_fields))
    wanted += f", or {'|'.join(INSTRUCTION_FIELDS)} with {'|'.join(RESPONSE_FIELDS)}"
    messages = next((name for name, value in row.items() if is_messages(value) and "role" in value[0]), None)
    hint = "rename the fields, or name the messages with sft_messages_field (--messages-field)"
    if _is_message(row):
        hint = (
            "it looks like one message: if the file is one conversation, wrap its messages in a list as"
            ' {"messages": [...]}; if it has several, name the column that tells them apart with --conversation-id'
        )
    elif messages is not None:
        hint = f"if {messages!r} holds the messages, set sft_messages_field (--messages-field) to it"
    return ConversationError(
        f"{origin}: the row has the fields {fields}, but a conversation needs {wanted}; {hint}", reason="fields"
    )


def _is_message(row: Mapping[str, Any]) -> bool:
    """Whether a row has a speaker and a text where a message has them."""
    return any(
        isinstance(row.get(role), str) and text in row for role, text in (("role", "content"), ("from", "value"))
    )


def _not_an_object(row: object, origin: str) -> ConversationError:
    return ConversationError(
        f"{origin}: the row is a {type_name(row)}, not an object; write one object per row", reason="not_an_object"
    )
