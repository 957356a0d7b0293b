# SPDX-License-Identifier: Apache-2.0
"""Rows of any source format as lines of OpenAI messages, with an account of every row.

    batch of rows -> readings -> fix-ups -> tools as text, if asked -> one line of JSON per conversation

A batch is converted by itself, in any process; the account of the whole is the sum of those of its batches.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from primus.chat.conversations import ConversationBatch, Reading
from primus.chat.fixups import NOTHING_LEFT, FixUps, Repaired, repair
from primus.chat.formats import detect_formats
from primus.chat.reading import Row
from primus.chat.writing import to_row
from primus.errors import ConversationError
from primus.sft.ledger import CONVERTED, Ledger
from primus.sft.tools_as_text import num_tool_messages, render_tools
from primus.sft.workers import Job

Tools = Literal["keep", "render"]

_RENDER_TOOLS = "render_tools"
_DONE = {
    "strip": "stripped",
    "drop_empty_turns": "dropped",
    "drop_leading_assistant": "dropped",
    "merge_consecutive": "joined to the one before",
    _RENDER_TOOLS: "with tools written as text",
}


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that is not a valid conversation.

    Attributes:
        row: The row.
        reason: Name of the rule that it breaks.
        error: What is wrong with it.
    """

    row: Row
    reason: str
    error: str


@dataclass(slots=True)
class ConversionCounts:
    """What became of rows, and what was done to their conversations.

    Attributes:
        ledger: What became of every row, and how many conversations that makes.
        fixed_messages: How many messages each fix-up changed, and how many `render_tools` wrote as text.
        fixed_conversations: How many conversations each of them changed.
        formats: How many rows of each file were recognised as which format; empty if the format was named.
    """

    ledger: Ledger = field(default_factory=Ledger)
    fixed_messages: Counter[str] = field(default_factory=Counter)
    fixed_conversations: Counter[str] = field(default_factory=Counter)
    formats: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, other: "ConversionCounts") -> None:
        """Take in the counts of rows that follow."""
        self.ledger.add(other.ledger)
        self.fixed_messages.update(other.fixed_messages)
        self.fixed_conversations.update(other.fixed_conversations)
        for path, found in other.formats.items():
            self.formats.setdefault(path, Counter()).update(found)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, for a JSON file."""
        ledger = self.ledger.to_dict()
        of_tokens = ("num_splits", "num_truncated", "num_untrained_turns")
        return {
            **{name: value for name, value in ledger.items() if name not in of_tokens},
            "fix_ups": {
                name: {"messages": count, "conversations": self.fixed_conversations[name]}
                for name, count in self.fixed_messages.items()
            },
            "formats": {path: dict(found) for path, found in self.formats.items()},
        }

    def lines(self) -> list[str]:
        """The account for people: rows, conversations, fix-ups."""
        written = _counted(self.ledger.num_conversations, "conversation")
        fix_ups = [
            f"  {name}: {_counted(self.fixed_messages[name], 'message')} {what}, in"
            f" {_counted(self.fixed_conversations[name], 'conversation')}"
            for name, what in _DONE.items()
            if self.fixed_messages[name]
        ]
        return [*self.ledger.lines(), f"{written} written", *fix_ups]


@dataclass(slots=True)
class ConvertedBatch:
    """What a batch of rows became.

    Attributes:
        path: The file of the rows.
        bytes_read: How many bytes of the file had been read when the batch was made.
        text: A line of JSON per conversation, in UTF-8.
        counts: What became of the rows.
        bad_rows: The rows that are not valid.
    """

    path: str
    bytes_read: int
    text: bytes = b""
    counts: ConversionCounts = field(default_factory=ConversionCounts)
    bad_rows: list[BadRow] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class ConversionJob(Job[ConversationBatch, ConvertedBatch]):
    """How batches are converted.

    Attributes:
        fix_ups: The repairs that are made.
        tools: `keep` writes tool definitions, calls and answers as the fields that OpenAI has; `render` writes them
            into the contents, for trainers that know no tools.

    Raises:
        ValueError: If `tools` has a value that does not exist.
    """

    fix_ups: FixUps = field(default_factory=FixUps)
    tools: Tools = "keep"

    def __post_init__(self) -> None:
        if self.tools not in get_args(Tools):
            raise ValueError(f"tools is {self.tools!r}, not one of {', '.join(get_args(Tools))}")

    def start(self) -> Callable[[ConversationBatch], ConvertedBatch]:
        """Nothing is to be loaded."""
        return self.convert

    def convert(self, batch: ConversationBatch) -> ConvertedBatch:
        """Convert a batch of rows.

        Args:
            batch: The rows.

        Returns:
            Their conversations as text, and what became of every row.
        """
        converted = ConvertedBatch(batch.rows.path, batch.rows.bytes_read)
        lines: list[str] = []
        found: Counter[str] = Counter()
        for reading in batch.readings():
            if batch.options.format == "auto":
                found.update(detect_formats(reading.rows, batch.options))
            try:
                lines += _lines(converted.counts, reading, self._repaired(reading))
            except ConversationError as exc:
                _set_aside(converted, reading, exc)
        if found:
            converted.counts.formats[converted.path] = found
        converted.text = "".join(lines).encode()
        return converted

    def _repaired(self, reading: Reading) -> list[Repaired]:
        """The conversations of which something is left, with what was done to them."""
        if reading.error is not None:
            raise reading.error
        left: list[Repaired] = []
        for conversation in reading.conversations:
            try:
                repaired = repair(conversation, self.fix_ups)
            except ConversationError as exc:
                if exc.reason != NOTHING_LEFT:
                    raise
                continue
            left.append(self._rendered(repaired))
        return left

    def _rendered(self, repaired: Repaired) -> Repaired:
        num_rendered = num_tool_messages(repaired.conversation) if self.tools == "render" else 0
        if not num_rendered:
            return repaired
        counts = repaired.counts + Counter({_RENDER_TOOLS: num_rendered})
        return Repaired(render_tools(repaired.conversation), counts)


def _lines(counts: ConversionCounts, reading: Reading, left: Sequence[Repaired]) -> list[str]:
    for repaired in left:
        counts.fixed_messages.update(repaired.counts)
        counts.fixed_conversations.update(repaired.counts.keys())
    counts.ledger.record_together(
        CONVERTED if left else NOTHING_LEFT,
        origins=[row.origin for row in reading.rows],
        num_conversations=len(left),
        num_dropped=len(reading.conversations) - len(left),
    )
    ignored = {name for conversation in reading.conversations for name in conversation.ignored_fields}
    counts.ledger.ignored_fields.update(sorted(ignored))
    return [json.dumps(to_row(repaired.conversation), ensure_ascii=False) + "\n" for repaired in left]


def _set_aside(converted: ConvertedBatch, reading: Reading, error: ConversationError) -> None:
    for row in reading.rows:
        converted.counts.ledger.record(f"bad:{error.reason}", origin=row.origin)
        converted.bad_rows.append(BadRow(row, error.reason, str(error)))


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
