# SPDX-License-Identifier: Apache-2.0
"""Lines of usual rows are read together as each of them is alone, and everything else is left to the usual way."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primus.chat.conversations import ConversationBatch, SourceOptions
from primus.chat.plain_lines import PlainLines, read_plain_lines
from primus.chat.reading import RowBatch

TEXTS = st.text(max_size=8) | st.sampled_from(
    ['"', '\\"', "\\", '\\\\"', "\n", "\u2028", "\x00", "\x7f", "é", "👍", "\\u0022"]
)
PIECES = [b'"', b"\\", b",", b"{", b"}", b"\n", b"\x00", b"\xff", b"\\u0022", b'"content":"x",', b'"role":', b" "]
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "assistant", "tool"]), "content": TEXTS}
)
ROWS = st.fixed_dictionaries({"messages": st.lists(MESSAGES, min_size=1, max_size=4)})
USUAL = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}


def plain_of(lines: bytes, options: SourceOptions | None = None) -> PlainLines | None:
    return read_plain_lines(ConversationBatch(RowBatch("a.jsonl", 5, lines), options or SourceOptions()))


def assert_read_as_alone(lines: bytes) -> bool:
    """Compare with the usual way; return whether the lines were read together."""
    batch = ConversationBatch(RowBatch("a.jsonl", 5, lines), SourceOptions())
    plain = read_plain_lines(batch)
    if plain is None:
        return False
    readings = list(batch.readings())
    assert [reading.error for reading in readings] == [None] * len(plain)
    conversations = [conversation for reading in readings for conversation in reading.conversations]
    assert [plain.conversation(index) for index in range(len(plain))] == conversations
    assert [plain.conversation(index).origin for index in range(len(plain))] == [c.origin for c in conversations]
    assert plain.origins() == [c.origin for c in conversations]
    assert [plain.row(index) for index in range(len(plain))] == list(batch.rows)
    assert plain.opening_hashes() == [c.opening_hash for c in conversations]
    return True


@given(
    rows=st.lists(ROWS, min_size=1, max_size=4),
    ascii_only=st.booleans(),
    separators=st.sampled_from([(",", ":"), (", ", ": "), (" ,\t", " :\r")]),
    end=st.sampled_from(["", "\n"]),
)
def test_usual_rows_are_read_together(
    rows: list[dict[str, Any]], ascii_only: bool, separators: tuple[str, str], end: str
) -> None:
    lines = [json.dumps(row, ensure_ascii=ascii_only, separators=separators) for row in rows]
    data = ("\n".join(lines) + end).encode(errors="surrogatepass")
    are_answered = all(any(m["role"] == "assistant" for m in row["messages"]) for row in rows)
    may_hide_marks = any(ord(c) > 0xD7FF and ord(c) < 0xE000 for line in lines for c in line) or b"\\u0022" in data
    together = assert_read_as_alone(data)
    assert together or not are_answered or may_hide_marks or b"\\ud" in data


@settings(max_examples=300)
@given(row=ROWS, seed=st.integers(0, 10**9))
def test_damaged_lines_are_never_read_differently(row: dict[str, Any], seed: int) -> None:
    chance = random.Random(seed)
    line = bytearray(json.dumps(row).encode())
    for _ in range(chance.randint(1, 3)):
        place = chance.randrange(len(line))
        piece = chance.choice(PIECES)
        action = chance.randrange(3)
        line[place : place + (action != 0)] = piece if action != 1 else b""
    assert_read_as_alone(bytes(line) + b"\n" + json.dumps(USUAL).encode())


@pytest.mark.parametrize(
    "line",
    [
        b'{"messages": [{"role": "assistant", "content": "a"}], "messages": [{"role": "assistant", "content": "a"}]}',
        b'{"messages": [{"role": "assistant", "content": "a", "content": "b"}]}',
        b'{"messages": [{"role": "assistant", "role": "assistant", "content": "b"}]}',
        b'{"messages": [{"role": "assistant", "content": "a", "content": "\\u0022\\u0022\\u0022\\u0022"}]}',
        b'{"messages": [{"role": "assistant", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "assistant", "content": "\xff"}]}',
        b'{"messages": [{"role": "assistant", "content": "a", "weight": 1}]}',
        b'{"messages": [{"role": "user", "content": "a"}]}',
        b'{"messages": []}',
        b'{"messages": [{"role": "assistant", "content": "a"}], "id": 1}',
        b'{"messages": [{"role": "assistant", "content": null}]}',
        b'{"messages": [{"role": "developer", "content": "a"}, {"role": "assistant", "content": "a"}]}',
        b"\xef\xbb\xbf" + json.dumps(USUAL).encode(),
        json.dumps(USUAL).encode() * 2,
        b"",
        b"  ",
    ],
)
def test_anything_else_is_left_to_the_usual_way(line: bytes) -> None:
    usual = json.dumps(USUAL).encode()
    assert plain_of(usual) is not None
    assert plain_of(usual + b"\n" + line + b"\n" + usual) is None


@pytest.mark.parametrize(
    "options", [SourceOptions(format="sharegpt"), SourceOptions(messages_field="chat"), SourceOptions(think="split")]
)
def test_rows_that_are_read_otherwise_are_left_to_the_usual_way(options: SourceOptions) -> None:
    assert plain_of(json.dumps(USUAL).encode(), options) is None


def test_decoded_rows_are_left_to_the_usual_way() -> None:
    rows = tuple(RowBatch("a.jsonl", 1, json.dumps(USUAL).encode()))
    assert read_plain_lines(ConversationBatch(RowBatch("a.parquet", decoded=rows), SourceOptions())) is None


class Watched(Sequence[Any]):
    """Tells which of its items were looked at."""

    def __init__(self, items: Sequence[Any]) -> None:
        self.items = items
        self.seen: list[int] = []

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        indices = range(len(self.items))[index]
        self.seen += indices if isinstance(indices, range) else [indices]
        return self.items[index]


def test_a_row_is_found_without_going_through_those_before_it() -> None:
    batch = ConversationBatch(RowBatch("a.jsonl", lines=(json.dumps(USUAL).encode() + b"\n") * 300), SourceOptions())
    plain = read_plain_lines(batch)
    assert plain is not None
    per_row, per_message = ("lines", "num_messages", "first_messages"), ("roles", "contents")
    watched: dict[str, Any] = {name: Watched(getattr(plain, name)) for name in (*per_row, *per_message)}
    plain = replace(plain, **watched)
    for i, reading in enumerate(batch.readings()):
        assert (plain.row(i), plain.conversation(i)) == (*reading.rows, *reading.conversations)
        first = len(USUAL["messages"]) * i
        assert all(set(watched[name].seen) == {i} for name in per_row)
        assert all(set(watched[name].seen) == set(range(first, first + len(USUAL["messages"]))) for name in per_message)
        for items in watched.values():
            items.seen.clear()
