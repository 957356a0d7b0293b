# SPDX-License-Identifier: Apache-2.0
"""Lines that are all usual rows, decoded in a fraction of the time: `messages` and nothing else, roles and texts.

The decoder checks types, names and UTF-8 as it goes, and refuses everything that `load_json` refuses but one thing: of
a key that stands twice it takes the last. Each key has its quotation marks, so counting them finds it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from primus.chat.conversations import ConversationBatch
from primus.chat.formats.plain_rows import takes_plain
from primus.chat.messages import Conversation, Role, hash_of_plain, plain_message
from primus.chat.reading import Row
from primus.chat.reading.rows import RowBatch

_MARKS_PER_ROW = 2  # those around "messages"
_MARKS_PER_MESSAGE = 8  # around "role", "content", and the values of both
# The one way to write a quotation mark inside a text without one.
_ESCAPED_MARK = b"\\u0022"


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
        batch: The lines.
        roles: Who speaks, of the messages of all rows, one row's behind another's.
        contents: What is said.
        num_messages: How many messages each row has.
    """

    batch: RowBatch
    roles: Sequence[Role]
    contents: Sequence[str]
    num_messages: Sequence[int]

    def __len__(self) -> int:
        return len(self.num_messages)

    def origins(self) -> list[str]:
        """Where each row stands."""
        path, first = self.batch.path, self.batch.first_line
        return [f"{path}:{number}" for number in range(first, first + len(self))]

    def row(self, index: int) -> Row:
        """A row as it is read by itself."""
        line = self.batch.lines.split(b"\n", index + 1)[index]
        [row] = RowBatch(self.batch.path, first_line=self.batch.first_line + index, lines=line)
        return row

    def conversation(self, index: int) -> Conversation:
        """The conversation of a row."""
        first = sum(self.num_messages[:index])
        places = range(first, first + self.num_messages[index])
        messages = tuple(plain_message(self.roles[place], self.contents[place]) for place in places)
        return Conversation(messages, origin=f"{self.batch.path}:{self.batch.first_line + index}")

    def opening_hashes(self) -> list[str]:
        """The `opening_hash` of the conversation of each row."""
        hashes: list[str] = []
        first = 0
        for num_messages in self.num_messages:
            last = first + num_messages
            roles = self.roles[first:last]
            if "user" in roles:
                end = first + roles.index("user") + 1
            else:
                end = first + next(i for i, role in enumerate(roles, start=1) if role != "system")
            hashes.append(hash_of_plain(zip(self.roles[first:end], self.contents[first:end], strict=True)))
            first = last
        return hashes


def read_plain_lines(batch: ConversationBatch) -> PlainLines | None:
    """Decode lines that are all usual rows.

    Args:
        batch: Rows, and how they are read.

    Returns:
        What `ConversationBatch.readings` gives for them, or None if a line is anything else, or not valid.
    """
    lines = batch.rows.lines
    if not lines or not takes_plain(batch.options) or _ESCAPED_MARK in lines:
        return None
    try:
        rows = [_decode(line) for line in lines.removesuffix(b"\n").split(b"\n")]
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
    if lines.count(b'"') != num_marks + sum([content.count('"') for content in contents]):
        return None
    return PlainLines(batch.rows, roles, contents, [len(row.messages) for row in rows])
