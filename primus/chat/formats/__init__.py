# SPDX-License-Identifier: Apache-2.0
"""Source formats: what conversations look like in the files that people have.

    row -> recognise (by its shape, or by the name of the format) -> parse -> conversations

Each format is a module of its own with two functions, `recognises(row, options)` and `parse(row, origin, options)`;
`registry` names them all. What formats share: `message_reading` (one message), `tools` (definitions and calls),
`notes` (fields that have no place, and the conversation at the end), `values` (JSON).
"""

from primus.chat.formats.column_map import ColumnMap
from primus.chat.formats.options import AUTO, SourceOptions
from primus.chat.formats.registry import (
    FORMATS,
    SourceFormat,
    detect_formats,
    group_of,
    parse_group,
    parse_row,
    recognise,
)

__all__ = [
    "AUTO",
    "FORMATS",
    "ColumnMap",
    "SourceFormat",
    "SourceOptions",
    "detect_formats",
    "group_of",
    "parse_group",
    "parse_row",
    "recognise",
]
