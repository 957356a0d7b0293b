# SPDX-License-Identifier: Apache-2.0
"""The conversation and its parts are valid if they exist."""

import dataclasses
import math
from typing import Any, get_args

import pytest

from primus.chat import Conversation, Message, Role, ToolCall
from primus.errors import ConversationError

USER = Message("user", "Hi")
ASSISTANT = Message("assistant", "Hello")


def test_parts_of_a_conversation_can_not_be_changed() -> None:
    for part, field in ((USER, "content"), (ToolCall("f", "{}"), "name"), (Conversation((ASSISTANT,)), "messages")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, field, "other")


def test_a_tool_call_is_written_as_json_without_ascii_escapes() -> None:
    call = ToolCall(name='say "hi"', arguments='{"text": "Zürich 你好"}')
    assert call.to_json() == '{"name": "say \\"hi\\"", "arguments": {"text": "Zürich 你好"}}'


@pytest.mark.parametrize("role", ["narrator", "", "User", "assistant ", "gpt"])
def test_an_unknown_role_is_refused_with_the_known_ones(role: str) -> None:
    with pytest.raises(
        ConversationError, match=f"unknown role {role!r}; use one of system, user, assistant, tool"
    ) as e:
        Message(role, "x")  # type: ignore[arg-type]
    assert e.value.reason == "role"


@pytest.mark.parametrize("role", ["system", "user", "tool"])
@pytest.mark.parametrize(
    ("fields", "message", "reason"),
    [
        (
            {"tool_calls": (ToolCall("f", "{}"),)},
            "message has tool_calls; only the assistant calls tools",
            "tool_calls",
        ),
        ({"reasoning": "hm"}, "has reasoning; only the assistant reasons", "reasoning"),
        ({"weight": 1.0}, "has weight 1.0; only assistant messages are trained, so drop the weight", "weight"),
    ],
)
def test_what_only_the_assistant_has_is_refused_elsewhere(
    role: Any, fields: dict[str, Any], message: str, reason: str
) -> None:
    with pytest.raises(ConversationError, match=f"a {role} .*{message}") as refused:
        Message(role, "x", **fields)
    assert refused.value.reason == reason


def test_a_weight_of_zero_may_stand_at_any_message() -> None:
    assert [Message(role, "x", weight=0.0).weight for role in get_args(Role)] == [0.0] * 4


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf, -0.5])
def test_a_weight_is_a_finite_number_of_at_least_zero(weight: float) -> None:
    with pytest.raises(ConversationError, match=f"weight {weight} is not a finite number of at least 0"):
        Message("assistant", "x", weight=weight)


@pytest.mark.parametrize(
    ("role", "content", "start"),
    [
        ("user", "a\n\nb", 4),
        ("user", "a\n\nb", 2),
        ("user", "a\n\nb", -1),
        ("user", "\nb", 1),
        ("assistant", "a\n\nb", 3),
    ],
)
def test_an_input_begins_after_a_blank_line_of_a_user(role: Any, content: str, start: int) -> None:
    assert Message("user", "a\n\nb", input_start=3).input_start == 3
    with pytest.raises(ConversationError, match=f"input_start is {start}, but no text of a user's message begins"):
        Message(role, content, input_start=start)


def test_a_lone_surrogate_is_refused_with_its_place() -> None:
    message = r"content has the lone surrogate U\+D83D at character 3, which is no text; repair the source's escapes"
    with pytest.raises(ConversationError, match=message) as refused:
        Message("user", "abc\ud83d")
    assert refused.value.reason == "encoding"
    with pytest.raises(ConversationError, match=r"reasoning has the lone surrogate U\+DC00"):
        Message("assistant", "x", reasoning="\udc00")
    with pytest.raises(ConversationError, match=r"tool call 'f' has the lone surrogate U\+D800"):
        ToolCall("f", '{"a": "\ud800"}')
    with pytest.raises(ConversationError, match=r"a\.jsonl:1: tools has the lone surrogate U\+D800"):
        Conversation((ASSISTANT,), tools=('{"name": "\ud800"}',), origin="a.jsonl:1")


def test_a_conversation_has_messages_and_one_is_the_assistants() -> None:
    with pytest.raises(ConversationError, match=r"a\.jsonl:3: there are no messages; drop the row"):
        Conversation((), origin="a.jsonl:3")
    with pytest.raises(
        ConversationError, match=r"a\.jsonl:4: none of the 2 messages is the assistant's, so"
    ) as refused:
        Conversation((USER, USER), origin="a.jsonl:4")
    assert refused.value.reason == "no_assistant"


def test_origin_and_ignored_fields_are_no_part_of_the_identity() -> None:
    one = Conversation((USER, ASSISTANT), origin="a.jsonl:1", ignored_fields=("score",))
    other = Conversation((USER, ASSISTANT), origin="b.jsonl:9")
    assert one == other
    assert one.content_hash == other.content_hash


@pytest.mark.parametrize(
    "changed",
    [
        Conversation((USER, Message("assistant", "Hello!"))),
        Conversation((Message("system", "Hi"), ASSISTANT)),
        Conversation((USER, Message("assistant", "Hello", reasoning="hm"))),
        Conversation((USER, Message("assistant", "Hello", tool_calls=(ToolCall("f", "{}"),)))),
        Conversation((USER, ASSISTANT), tools=('{"name": "f"}',)),
        Conversation((USER, ASSISTANT, ASSISTANT)),
        Conversation((Message("user", 'Hi", "assistant", "Hello'), ASSISTANT)),
    ],
)
def test_another_conversation_has_another_content_hash(changed: Conversation) -> None:
    assert changed.content_hash != Conversation((USER, ASSISTANT)).content_hash


def test_the_content_hash_has_128_bits_and_never_changes() -> None:
    assert Conversation((USER, ASSISTANT)).content_hash == "d85e0d115920e4120a260e2890f6dfb6"


def test_the_opening_hash_never_changes_and_ends_with_the_first_question() -> None:
    # Splits go by it: another value would move conversations between train and validation.
    opening = Conversation((USER, ASSISTANT)).opening_hash
    assert opening == "5f5f34d8953676abc3b50e23b53538f3"
    longer = Conversation((USER, Message("assistant", "Other", reasoning="hm"), USER, ASSISTANT))
    assert longer.opening_hash == opening
    system, greeting = Message("system", "Be brief."), Message("assistant", "Welcome!")
    others = [
        Conversation((Message("user", "Other"), ASSISTANT)),
        Conversation((system, USER, ASSISTANT)),
        Conversation((greeting, USER, ASSISTANT)),
        Conversation((USER, ASSISTANT), tools=('{"name": "f"}',)),
        Conversation((greeting,)),
        Conversation((system, greeting)),
    ]
    assert len({opening, *(other.opening_hash for other in others)}) == 7
    assert Conversation((system, greeting, ASSISTANT)).opening_hash == others[-1].opening_hash
    empty = Conversation((Message("system", ""), *others[3].messages), tools=others[3].tools)
    assert empty.opening_hash == others[3].opening_hash
