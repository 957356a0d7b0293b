# SPDX-License-Identifier: Apache-2.0
"""The quick way through the usual row gives what the long way gives."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primus.chat.formats import SourceOptions, openai
from primus.chat.formats.plain_rows import read_plain
from primus.chat.formats.registry import parse_row, recognise
from primus.chat.messages import Message, plain_message

TEXTS = st.text(alphabet=st.characters(), max_size=20) | st.sampled_from(
    ["", "a", "\ud800", "é", "<think>\nx\n</think>"]
)
ROLES = st.sampled_from(["system", "user", "assistant", "tool", "developer", "Assistant", ""])
MESSAGES = st.fixed_dictionaries(
    {"role": ROLES | st.none(), "content": TEXTS | st.none()},
    optional={"name": TEXTS, "weight": st.sampled_from([0, 1, None]), "from": TEXTS},
)
PLAIN = st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": TEXTS})
ROWS = st.fixed_dictionaries({"messages": st.lists(MESSAGES | PLAIN | st.text(), max_size=4)}) | st.fixed_dictionaries(
    {"messages": st.lists(PLAIN, max_size=4)}, optional={"id": st.integers(), "tools": st.none()}
)


@given(ROWS)
def test_what_is_read_quickly_is_what_the_format_reads(row: Any) -> None:
    conversation = read_plain(row, "a.jsonl:1", SourceOptions())
    if conversation is not None:
        assert recognise(row, SourceOptions(), origin="a.jsonl:1").name == "openai"
        assert openai.parse(row, "a.jsonl:1", SourceOptions()) == (conversation,)
        assert conversation.origin == "a.jsonl:1"
        assert conversation.ignored_fields == ()


def test_a_plain_row_is_read_quickly() -> None:
    row = {"messages": [{"role": "user", "content": "né"}, {"content": "a", "role": "assistant"}]}
    conversation = read_plain(row, "a:1", SourceOptions(format="openai"))
    assert conversation is not None
    assert conversation.messages == (Message("user", "né"), Message("assistant", "a"))


def test_text_that_is_none_is_left_to_the_long_way() -> None:
    row = {"messages": [{"role": "user", "content": "\ud800"}, {"role": "assistant", "content": "a"}]}
    assert read_plain(row, "a:1", SourceOptions()) is None


def test_a_message_that_is_made_quickly_is_a_message() -> None:
    assert plain_message("assistant", "a") == Message("assistant", "a")
    assert hash(plain_message("tool", "")) == hash(Message("tool", ""))
    assert repr(plain_message("user", "x")) == repr(Message("user", "x"))


@pytest.mark.parametrize(
    "options",
    [
        SourceOptions(format="sharegpt"),
        SourceOptions(messages_field="turns"),
        SourceOptions(roles={"user": "assistant"}),
        SourceOptions(think="split"),
        SourceOptions(conversation_id="chat"),
    ],
)
def test_an_option_that_matters_asks_for_the_long_way(options: SourceOptions) -> None:
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    assert read_plain(row, "a:1", options) is None


def test_roles_that_are_renamed_are_renamed_in_plain_rows_too() -> None:
    row = {"messages": [{"role": "assistant", "content": "q"}, {"role": "user", "content": "a"}]}
    [conversation] = parse_row(row, "a:1", SourceOptions(roles={"assistant": "user", "user": "assistant"}))
    assert [message.role for message in conversation.messages] == ["user", "assistant"]
