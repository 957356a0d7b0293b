# SPDX-License-Identifier: Apache-2.0
"""A conversation that is written as a row is read as the same conversation, and written as the same row."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from primus.chat import Conversation, Message, ToolCall, parse_conversation
from primus.chat.reading import load_json
from primus.chat.writing import to_row

# Everything that UTF-8 holds.
TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(TEXT, values, max_size=3),
    max_leaves=5,
)
OBJECT_TEXT = st.dictionaries(TEXT, JSON, max_size=3).map(lambda value: json.dumps(value, ensure_ascii=False))
CALLS = st.lists(st.builds(ToolCall, TEXT, OBJECT_TEXT, st.none() | TEXT), max_size=2).map(tuple)
# A weight that a row may have is one that a float32 holds.
WEIGHTS = st.none() | st.floats(0, 2.0**100, width=32) | st.sampled_from([0.0, 1.0, 0.5])
ASSISTANTS = st.builds(
    Message,
    st.just("assistant"),
    TEXT,
    tool_calls=CALLS,
    name=st.none() | TEXT,
    reasoning=st.none() | TEXT.filter(bool),
    weight=WEIGHTS,
)
OTHERS = st.builds(
    Message,
    st.sampled_from(["system", "user", "tool"]),
    TEXT,
    tool_call_id=st.none() | TEXT,
    name=st.none() | TEXT,
    weight=st.sampled_from([None, 0.0]),
)
INPUTS = st.builds(
    lambda instruction, text: Message("user", f"{instruction}\n\n{text}", input_start=len(instruction) + 2),
    TEXT,
    TEXT.filter(bool),
)
CONVERSATIONS = st.builds(
    lambda messages, last, tools: Conversation((*messages, last), tools=tuple(tools)),
    st.lists(ASSISTANTS | OTHERS | INPUTS, max_size=4),
    ASSISTANTS,
    st.lists(OBJECT_TEXT, max_size=2),
)


def written(conversation: Conversation) -> str:
    return json.dumps(to_row(conversation), ensure_ascii=False)


@given(CONVERSATIONS)
def test_a_written_conversation_reads_as_itself_and_is_written_the_same(conversation: Conversation) -> None:
    line = written(conversation)
    read = parse_conversation(load_json(line))
    assert read == conversation
    assert written(read) == line
    assert read.ignored_fields == ()


def test_a_row_has_the_keys_of_openai_in_a_fixed_order_and_no_empty_ones() -> None:
    call = {"function": {"arguments": {"city": "Zürich"}, "name": "weather"}, "id": "c1", "type": "function"}
    row: dict[str, Any] = {
        "id": 7,
        "functions": [{"name": "weather", "parameters": {"type": "object"}}],
        "messages": [
            {"content": "Rain?", "role": "user", "name": None},
            {"tool_calls": [call], "role": "assistant", "reasoning_content": "Look.", "weight": 0},
            {"content": "no", "role": "function", "name": "weather", "tool_call_id": "c1"},
            {"content": "No.", "role": "assistant", "weight": 0.5},
        ],
    }
    assert written(parse_conversation(row)) == (
        '{"messages": [{"role": "user", "content": "Rain?"}, '
        '{"role": "assistant", "content": "", "reasoning_content": "Look.", "tool_calls": [{"id": "c1", "type": '
        '"function", "function": {"name": "weather", "arguments": "{\\"city\\": \\"Zürich\\"}"}}], "weight": 0}, '
        '{"role": "tool", "content": "no", "name": "weather", "tool_call_id": "c1"}, '
        '{"role": "assistant", "content": "No.", "weight": 0.5}], '
        '"tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]}'
    )


def test_the_input_of_a_single_turn_row_is_still_known() -> None:
    conversation = parse_conversation({"instruction": "Add.", "input": "2 2", "output": "4"})
    assert to_row(conversation)["messages"][0] == {"role": "user", "content": "Add.\n\n2 2", "input_start": 6}
