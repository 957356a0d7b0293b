# SPDX-License-Identifier: Apache-2.0
"""Tools as text: what ChatML would train of the conversation with tools is what stands in the messages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primus.chat import Conversation, Message, ToolCall
from primus.errors import ConversationError
from primus.sft.formatters import OpenAIMessagesFormatter
from primus.sft.tools_as_text import TOOL_ORDER, num_tool_messages, render_tools

TOOLS = ('{"type": "function", "function": {"name": "time"}}', '{"type": "function", "function": {"name": "date"}}')
CALLS = (ToolCall("time", '{"zone": "UTC"}', id="1"), ToolCall("date", "{}", id="2"))
CONVERSATION = Conversation(
    (
        Message("system", "Be brief."),
        Message("user", "When?"),
        Message("assistant", "I look.", tool_calls=CALLS, reasoning="Two tools.", weight=0.5),
        Message("tool", "12:00", tool_call_id="1", name="time"),
        Message("tool", "", tool_call_id="2"),
        Message("assistant", "At noon."),
        Message("user", "Thanks"),
        Message("assistant", "", tool_calls=CALLS[1:]),
        Message("tool", "Monday"),
    ),
    tools=TOOLS,
    origin="a.jsonl:1",
    ignored_fields=("x",),
)


def test_definitions_calls_and_answers_become_text() -> None:
    rendered = render_tools(CONVERSATION)
    assert rendered.tools == ()
    assert rendered.messages[0] == Message(
        "system",
        "Be brief.\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
        '{"type": "function", "function": {"name": "time"}}\n{"type": "function", "function": {"name": "date"}}\n'
        "</tools>\n\nFor each function call, return a json object with function name and arguments within"
        " <tool_call></tool_call> XML tags:\n<tool_call>\n"
        '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>',
    )
    assert rendered.messages[1:] == (
        Message("user", "When?"),
        Message(
            "assistant",
            'I look.\n<tool_call>\n{"name": "time", "arguments": {"zone": "UTC"}}\n</tool_call>\n'
            '<tool_call>\n{"name": "date", "arguments": {}}\n</tool_call>',
            reasoning="Two tools.",
            weight=0.5,
        ),
        Message("user", "<tool_response>\n12:00\n</tool_response>\n<tool_response>\n\n</tool_response>"),
        Message("assistant", "At noon."),
        Message("user", "Thanks"),
        Message("assistant", '<tool_call>\n{"name": "date", "arguments": {}}\n</tool_call>'),
        Message("user", "<tool_response>\nMonday\n</tool_response>"),
    )
    assert (rendered.origin, rendered.ignored_fields) == ("a.jsonl:1", ("x",))


def test_the_assistant_is_trained_on_the_same_text() -> None:
    formatter = OpenAIMessagesFormatter()
    before, after = formatter.render(CONVERSATION), formatter.render(render_tools(CONVERSATION))
    assert [(before.text[s.start : s.end], s.kind, s.weight) for s in before.spans] == [
        (after.text[s.start : s.end], s.kind, s.weight) for s in after.spans
    ]


def test_without_answers_the_whole_rendering_is_the_same() -> None:
    formatter = OpenAIMessagesFormatter()
    for first in (Message("system", "Be brief."), Message("system", ""), Message("user", "Hi")):
        conversation = Conversation((first, *CONVERSATION.messages[1:3]), tools=TOOLS)
        assert formatter.render(render_tools(conversation)).text == formatter.render(conversation).text


def test_a_conversation_without_tools_is_the_same_object() -> None:
    conversation = Conversation((Message("user", "Hi"), Message("assistant", "<tool_call>")))
    assert render_tools(conversation) is conversation


def test_rendered_tools_are_rendered_once() -> None:
    rendered = render_tools(CONVERSATION)
    assert render_tools(rendered) is rendered


def test_the_messages_that_become_text_are_counted() -> None:
    assert num_tool_messages(CONVERSATION) == 6, "definitions, two messages with calls, three answers"
    assert num_tool_messages(render_tools(CONVERSATION)) == 0


# --- which answer is that of which call ---


def calling(*names: str) -> Message:
    """A message with calls; capital letters are ids, small ones names of calls without an id."""
    calls = (ToolCall("f", "{}", id=name) if name.isupper() else ToolCall(name, "{}") for name in names)
    return Message("assistant", "", tool_calls=tuple(calls))


def answers(*names: str | None) -> list[Message]:
    return [
        Message("tool", f"answer {name}", tool_call_id=name)
        if name is None or name.isupper()
        else Message("tool", f"answer {name}", name=name)
        for name in names
    ]


AND, YES = Message("user", "And?"), Message("assistant", "Yes.")


@pytest.mark.parametrize(
    "messages",
    [
        [calling("A", "B"), *answers("B", "A")],
        [calling("A", "B"), *answers("B")],
        [calling("A"), calling("B"), *answers("B", "A")],
        [calling("A", "B"), *answers("A", "A", "B")],
        [calling("A", "B"), *answers("A", "B", "A")],
        [calling("A", "B"), *answers(None, "A")],
        [calling("A", "B", "C"), *answers("A"), YES, *answers("C", "B")],
        [calling("A"), AND, calling("B"), *answers("B", "A")],
        [calling("A", "A", "B"), *answers("A", "B", "A")],
        [calling("x", "y"), *answers("y", "x")],
    ],
    ids=lambda messages: " ".join(m.content or "+".join(c.id or c.name for c in m.tool_calls) for m in messages),
)
def test_answers_in_another_order_than_the_calls_are_refused(messages: list[Message]) -> None:
    with pytest.raises(
        ConversationError, match=r"a:1: turn \d \(tool\) answers the call '\w', but as text it is"
    ) as bad:
        render_tools(Conversation((AND, *messages), origin="a:1"))
    assert bad.value.reason == TOOL_ORDER


@pytest.mark.parametrize(
    "messages",
    [
        [calling("A", "B"), *answers("A", "B")],
        [calling("A", "B"), *answers("A")],
        [calling("A", "B"), *answers("A"), YES, *answers("B")],
        [calling("A"), calling("B"), *answers("A", "B"), YES],
        [calling("A"), *answers("A", "A")],
        [calling("A"), AND, calling("B"), *answers("B", "B")],
        [calling("A", "B"), *answers("A", "B"), calling("A", "B"), *answers("A", "B")],
        [calling("A", "B"), *answers("X", "Y")],
        [calling("A", "B"), *answers(None, "B", None)],
        [calling("x", "y"), *answers("x", "y", "z")],
        [calling("x", "y"), *answers("A", "B")],
        [*answers("A", "b", None), YES],
    ],
    ids=lambda messages: " ".join(m.content or "+".join(c.id or c.name for c in m.tool_calls) for m in messages),
)
def test_answers_that_the_order_tells_apart_are_written(messages: list[Message]) -> None:
    conversation = Conversation((AND, *messages, YES))
    text = "".join(message.content for message in render_tools(conversation).messages)
    assert text.count("<tool_response>") == sum(message.role == "tool" for message in messages)


@given(st.permutations("ABCD"))
def test_of_all_orders_of_answers_only_that_of_the_calls_is_written(order: list[str]) -> None:
    conversation = Conversation((AND, calling(*"ABCD"), *answers(*order)))
    if order == list("ABCD"):
        assert render_tools(conversation) != conversation
    else:
        with pytest.raises(ConversationError, match="keep tools as fields"):
            render_tools(conversation)
