# SPDX-License-Identifier: Apache-2.0
"""One message in all the words for it: roles, weights, reasoning, contents and arguments."""

from typing import Any

import pytest

from primus.chat import Message
from primus.chat.formats import SourceOptions, parse_row
from primus.errors import ConversationError


def read(message: dict[str, Any], **options: Any) -> Message:
    row = {"messages": [{"role": "user", "content": "q"}, message]}
    [conversation] = parse_row(row, "a.jsonl:1", SourceOptions(**options))
    return conversation.messages[1]


def assistant(**fields: Any) -> Message:
    return read({"role": "assistant", "content": "x", **fields})


@pytest.mark.parametrize(
    ("fields", "weight"),
    [
        ({}, None), ({"weight": 0}, 0), ({"weight": 0.5}, 0.5), ({"loss_weight": 1.0}, 1), ({"train": True}, 1),
        ({"train": False}, 0), ({"train": 0}, 0), ({"trainable": True}, 1), ({"loss": False}, 0), ({"loss": 1}, 1),
        ({"loss_mask": 0}, 0), ({"masked": True}, 0), ({"masked": False}, 1), ({"mask": None, "train": None}, None),
        ({"weight": 1, "train": True, "masked": False}, 1),
    ],
)  # fmt: skip
def test_a_weight_has_many_names(fields: dict[str, Any], weight: float | None) -> None:
    assert assistant(**fields).weight == weight


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight": True}, "weight is True, not a number; write 0 or 1"),
        ({"loss_weight": "1"}, "loss_weight is '1', not a number; write 0 or 1"),
        ({"train": "yes"}, "train is 'yes', not a number; write 0 or 1"),
        ({"masked": 1}, "masked is 1, not a boolean; write 0 or 1"),
        ({"mask": 1}, "mask does not say whether 1 means trained; write weight 0 or 1 instead"),
        ({"train_detail": [{}]}, "train_detail trains parts of a message; write weight 0 or 1 instead"),
        ({"weight": 1e-46}, "weight is 1e-46, which is 0 as a float32; write 0 to keep the answer as context, or a"),
        ({"weight": 0, "train": True}, r"says different things about its weight \(train True, weight 0\); keep one"),
    ],
)
def test_a_weight_that_says_nothing_clear_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConversationError, match=rf"^a\.jsonl:1: turn 1 \(assistant\): {message}") as refused:
        assistant(**fields)
    assert refused.value.reason == "weight"


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_has_three_names(name: str) -> None:
    assert assistant(**{name: "hm"}).reasoning == "hm"
    assert assistant(**{name: ""}).reasoning is None
    assert assistant(reasoning_content="hm", **({name: "hm"} if name != "reasoning_content" else {})).reasoning == "hm"


def test_two_different_reasonings_are_refused() -> None:
    with pytest.raises(ConversationError, match="has different reasoning in reasoning_content and thinking; keep one"):
        assistant(reasoning_content="a", thinking="b")


@pytest.mark.parametrize(
    ("content", "reasoning", "rest"),
    [
        ("<think>\nEasy.\n</think>\n\n4", "Easy.", "4"),
        ("<think>a</think>b", "a", "b"),
        ("<think> a\n\nb </think>\n\n\n", " a\n\nb ", ""),
        ("<think>\n\n</think>\n\n4", None, "4"),
        (" \n<think>a</think>b", "a", "b"),
        ("<think></think>b", None, "b"),
        (" 4 <think>a</think>", None, " 4 <think>a</think>"),
        ("4", None, "4"),
    ],
)
def test_a_think_element_is_kept_unless_it_is_to_be_split_off(content: str, reasoning: str | None, rest: str) -> None:
    message = {"role": "assistant", "content": content}
    assert read(message) == Message("assistant", content)
    assert read(message, think="split") == Message("assistant", rest, reasoning=reasoning)


@pytest.mark.parametrize("content", ["<think></think>b", " <think>\n \n</think>\n\nb", "<think></think>"])
def test_an_empty_think_element_is_counted_where_it_is_dropped(content: str) -> None:
    messages = [{"role": "user", "content": "<think></think>"}, {"role": "assistant", "content": content}]
    [split] = parse_row(messages, "a.jsonl:1", SourceOptions(think="split"))
    assert split.ignored_fields == ("empty <think> elements",)
    [kept] = parse_row(messages, "a.jsonl:1", SourceOptions())
    assert kept.ignored_fields == ()
    messages[1]["content"] = "<think>a</think>b"
    [split] = parse_row(messages, "a.jsonl:1", SourceOptions(think="split"))
    assert split.ignored_fields == ()


def test_only_an_assistant_thinks() -> None:
    row = {"messages": [{"role": "user", "content": "<think>a"}, {"role": "assistant", "content": "b"}]}
    [conversation] = parse_row(row, "a.jsonl:1", SourceOptions(think="split"))
    assert conversation.messages[0].content == "<think>a"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"content": "<think>a"}, "content begins with <think>, which is never closed; repair the row, or leave it"),
        ({"content": " <think>a"}, "content begins with <think>, which is never closed; repair the row, or leave it"),
        (
            {"content": "<think>a</think>b<think>c</think>d"},
            "content has another tag of <think> besides the element at",
        ),
        ({"content": "<think></think>b<think>c</think>d"}, "content has another tag of <think> besides the element at"),
        (
            {"content": "<think>a<think>b</think>c</think>d"},
            "content has another tag of <think> besides the element at",
        ),
        ({"content": "<think>a</think>b</think>c"}, "content has another tag of <think> besides the element at its"),
        ({"content": "<think>a</think>b<think>c"}, "content has another tag of <think> besides the element at its"),
        ({"content": "<think>a</think>b", "reasoning": "c"}, "has reasoning beside a <think> element in its content"),
    ],
)
def test_a_think_element_that_can_not_be_split_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConversationError, match=rf"^a\.jsonl:1: turn 1: {message}") as refused:
        read({"role": "assistant", **fields}, think="split")
    assert refused.value.reason == "think"


def test_roles_of_a_users_own_go_before_those_of_the_format() -> None:
    roles = {"counselor": "assistant", "call": "function_call", "function": "user"}
    assert read({"role": "counselor", "content": "x"}, roles=roles).role == "assistant"
    assert read({"role": "call", "content": '{"name": "f"}'}, roles=roles).tool_calls[0].name == "f"
    row = {"messages": [{"role": "function", "content": "q"}, {"role": "assistant", "content": "a"}]}
    assert parse_row(row, "a.jsonl:1", SourceOptions(roles=roles))[0].messages[0].role == "user"


def test_what_a_tool_says_may_be_an_object() -> None:
    message = {"role": "tool", "content": {"b": 1, "a": "ü"}}
    row = {"messages": [message, {"role": "assistant", "content": {"type": "text", "text": "x"}}]}
    [conversation] = parse_row(row, "a.jsonl:1", SourceOptions())
    assert [m.content for m in conversation.messages] == ['{"b": 1, "a": "ü"}', "x"]


@pytest.mark.parametrize(
    ("arguments", "declared", "kept"),
    [
        ({"a": 1, "b": None}, {"a": {}}, '{"a": 1}'),
        ({"a": None, "b": None}, {"a": {}}, '{"a": null}'),
        ({"a": 1, "b": None}, None, '{"a": 1, "b": null}'),
        ('{"a": 1, "b": null}', {"a": {}}, '{"a": 1, "b": null}'),
        ({"a": {"c": None}}, {"a": {}}, '{"a": {"c": null}}'),
    ],
)
def test_a_null_argument_is_left_out_only_where_a_table_must_have_added_it(
    arguments: Any, declared: dict[str, Any] | None, kept: str
) -> None:
    call = {"function": {"name": "f", "arguments": arguments}}
    parameters = {} if declared is None else {"parameters": {"type": "object", "properties": declared}}
    row = {
        "tools": [{"type": "function", "function": {"name": "f", **parameters}}],
        "messages": [{"role": "assistant", "content": None, "tool_calls": [call]}],
    }
    [conversation] = parse_row(row, "a.jsonl:1", SourceOptions())
    assert conversation.messages[0].tool_calls[0].arguments == kept
    is_noted = "tool_calls.arguments (null, and not a parameter)" in conversation.ignored_fields
    assert is_noted == (isinstance(arguments, dict) and len(kept) < len(str(arguments).replace("None", "null")))
