# SPDX-License-Identifier: Apache-2.0
"""Lines that are all usual rows, decoded in a fraction of the time: `messages` and nothing else, roles and texts.

The decoder checks types, names and UTF-8 as it goes, and refuses everything that `load_json` refuses but one thing: of
a key that stands twice it takes the last. Each key has its quotation marks, so counting them finds it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import msgspec

from primus.chat.conversations import ConversationBatch
from primus.chat.formats.plain_rows import takes_plain
from primus.chat.messages import Conversation, Role, hash_of_plain, plain_message
from primus.chat.reading import Row
from primus.chat.reading.byte_search import count_byte, has_any
from primus.chat.reading.rows import RowBatch

_MARKS_PER_ROW = 2  # those around "messages"
_MARKS_PER_MESSAGE = 8  # around "role", "content", and the values of both
# The one way to write a quotation mark inside a text without one.
_ESCAPED_MARK, _ESCAPE = b"\\u0022", b"\\u00"


class _Message(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    role: Role
    content: str


class _Row(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    messages: list[_Message]


_decode = msgspec.json.Decoder(_Row).decode


@dataclass(frozen=True, slots=True)
class PlainLines:
    """Usual rows, one per line.

    Attributes:
        batch: Where they stand.
        lines: The lines, without their ends.
        roles: Who speaks, of the messages of all rows, one row's behind another's.
        contents: What is said.
        num_messages: How many messages each row has.
        first_messages: Which of all messages is the first of each row.
    """

    batch: RowBatch
    lines: Sequence[bytes]
    roles: Sequence[Role]
    contents: Sequence[str]
    num_messages: Sequence[int]
    first_messages: Sequence[int]

    def __len__(self) -> int:
        return len(self.num_messages)

    def origins(self) -> list[str]:
        """Where each row stands."""
        path, first = self.batch.path, self.batch.first_line
        return [f"{path}:{number}" for number in range(first, first + len(self))]

    def row(self, index: int) -> Row:
        """A row as it is read by itself."""
        [row] = RowBatch(self.batch.path, first_line=self.batch.first_line + index, lines=self.lines[index])
        return row

    def conversation(self, index: int) -> Conversation:
        """The conversation of a row."""
        first = self.first_messages[index]
        places = range(first, first + self.num_messages[index])
        messages = tuple(plain_message(self.roles[place], self.contents[place]) for place in places)
        return Conversation(messages, origin=f"{self.batch.path}:{self.batch.first_line + index}")

    def opening_hashes(self) -> list[str]:
        """The `opening_hash` of the conversation of each row."""
        hashes: list[str] = []
        for first, num_messages in zip(self.first_messages, self.num_messages, strict=True):
            last = first + num_messages
            roles = self.roles[first:last]
            if "user" in roles:
                end = first + roles.index("user") + 1
            else:
                end = first + next(i for i, role in enumerate(roles, start=1) if role != "system")
            hashes.append(hash_of_plain(zip(self.roles[first:end], self.contents[first:end], strict=True)))
        return hashes


def read_plain_lines(batch: ConversationBatch) -> PlainLines | None:
    """Decode lines that are all usual rows.

    Args:
        batch: Rows, and how they are read.

    Returns:
        What `ConversationBatch.readings` gives for them, or None if a line is anything else, or not valid.
    """
    lines = batch.rows.lines
    if not lines or not takes_plain(batch.options) or (has_any(lines, _ESCAPE) and _ESCAPED_MARK in lines):
        return None
    separate = lines.removesuffix(b"\n").split(b"\n")
    try:
        rows = [_decode(line) for line in separate]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    roles: list[Role] = []
    contents: list[str] = []
    for row in rows:
        of_row = [message.role for message in row.messages]
        if "assistant" not in of_row:
            return None
        roles += of_row
        contents += [message.content for message in row.messages]
    num_marks = _MARKS_PER_ROW * len(rows) + _MARKS_PER_MESSAGE * len(roles)
    if count_byte(lines, b'"') != num_marks + count_byte("".join(contents).encode(), b'"'):
        return None
    num_messages = [len(row.messages) for row in rows]
    first_messages = list(accumulate(num_messages[:-1], initial=0))
    return PlainLines(batch.rows, separate, roles, contents, num_messages, first_messages)
