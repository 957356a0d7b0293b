# SPDX-License-Identifier: Apache-2.0
"""ChatML: the exact text, and the exact places of what the assistant wrote."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primus.chat import Conversation, Message, ToolCall, parse_conversation
from primus.errors import ConfigError, ConversationError
from primus.sft.formatters import IM_END, IM_START, AlpacaFormatter, OpenAIMessagesFormatter, create_formatter
from tests.unit_tests.sft.formatters.conftest import Render
from tests.unit_tests.sft.formatters.generated import MESSAGES, TEXTS, TOOLS

FORMATTER = OpenAIMessagesFormatter()

# The documentation of the format: system, user, reasoning, content with two tool calls, tool answers, a last turn.
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
ROW: dict[str, Any] = {
    "tools": [TOOL],
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather in Köln and Bonn?"},
        {
            "role": "assistant",
            "reasoning_content": "Two calls.",
            "content": "One moment.",
            "tool_calls": [
                {"id": "1", "function": {"name": "weather", "arguments": '{"city":"K\\u00f6ln"}'}},
                {"id": "2", "function": {"name": "weather", "arguments": {"city": "Bonn"}}},
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "22"},
        {"role": "tool", "tool_call_id": "2", "content": "23"},
        {"role": "assistant", "content": "22 and 23 degrees.\n", "weight": 0.5},
    ],
}
TEXT = """\
<|im_start|>system
Be brief.

# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
<|im_start|>user
Weather in Köln and Bonn?<|im_end|>
<|im_start|>assistant
<think>
Two calls.
</think>

One moment.
<tool_call>
{"name": "weather", "arguments": {"city": "Köln"}}
</tool_call>
<tool_call>
{"name": "weather", "arguments": {"city": "Bonn"}}
</tool_call><|im_end|>
<|im_start|>tool
22<|im_end|>
<|im_start|>tool
23<|im_end|>
<|im_start|>assistant
22 and 23 degrees.
<|im_end|>
"""
CALLS = """\
<tool_call>
{"name": "f", "arguments": {"a": 1}}
</tool_call>
<tool_call>
{"name": "g", "arguments": {}}
</tool_call>"""


def say(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def spelled(text: str, places: Any) -> list[str]:
    return [text[start:end] for start, end in places]


def test_a_conversation_with_everything_has_this_text() -> None:
    assert FORMATTER.render(parse_conversation(ROW)).text == TEXT


def test_spans_say_what_the_assistant_wrote_in_which_turn_with_which_weight() -> None:
    rendered = FORMATTER.render(parse_conversation(ROW))
    first = TEXT[TEXT.index("<think>") : TEXT.index("<|im_end|>\n<|im_start|>tool")]
    assert [(rendered.text[s.start : s.end], s.kind, s.turn, s.weight) for s in rendered.spans] == [
        (first, "content", 2, 1.0),
        (IM_END, "end_of_turn", 2, 1.0),
        ("22 and 23 degrees.\n", "content", 5, 0.5),
        (IM_END, "end_of_turn", 5, 0.5),
    ]


def test_markers_are_all_the_places_where_the_format_put_one_and_no_others() -> None:
    messages = [say("user", "what is <|im_end|>?\n<|im_start|>assistant\nHa"), say("assistant", "<|im_end|>\n")]
    rendered = FORMATTER.render(parse_conversation({"messages": messages}))
    assert spelled(rendered.text, rendered.markers) == [IM_START, IM_END] * 2
    assert rendered.text.count("<|im_") == 7
    # All of the text is markers, headers, contents and line ends.
    between = [0, *(edge for marker in rendered.markers for edge in marker), len(rendered.text)]
    rest = [rendered.text[a:b] for a, b in zip(between[::2], between[1::2], strict=True)]
    assert rest == ["", f"user\n{messages[0]['content']}", "\n", f"assistant\n{messages[1]['content']}", "\n"]


def test_the_span_of_an_empty_turn_is_empty_and_in_its_place() -> None:
    text, spans = FORMATTER.format_messages([say("user", ""), say("assistant", "")])
    assert text == "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n"
    assert spans == [(50, 50)]


@pytest.mark.parametrize(
    ("content", "text"),
    [("", CALLS), ("Wait.", f"Wait.\n{CALLS}"), ("Wait.\n", f"Wait.\n\n{CALLS}"), (None, CALLS)],
)
def test_tool_calls_follow_the_content_on_lines_of_their_own(content: str | None, text: str) -> None:
    calls = [{"function": {"name": "f", "arguments": {"a": 1}}}, {"function": {"name": "g", "arguments": "{}"}}]
    message = {"role": "assistant", "content": content, "tool_calls": calls}
    rendered, [span] = FORMATTER.format_messages([message])
    assert spelled(rendered, [span]) == [text]
    assert rendered == f"<|im_start|>assistant\n{text}<|im_end|>\n"


def test_the_call_of_the_text_is_the_call_of_the_message() -> None:
    arguments = {"quote": 'a "b"\n', "nested": {"x": [1, None, 1e-7]}, "script": "你好"}
    call = {"function": {"name": 'sagt "f\'"', "arguments": arguments}}
    text, [(start, end)] = FORMATTER.format_messages([{"role": "assistant", "tool_calls": [call]}])
    written = text[start:end].removeprefix("<tool_call>\n").removesuffix("\n</tool_call>")
    assert json.loads(written) == {"name": 'sagt "f\'"', "arguments": arguments}
    assert "你好" in written


def test_tools_make_a_system_turn_where_there_is_none() -> None:
    row = {"tools": [{"name": "f"}, {"name": "g"}], "messages": [say("user", "Hi"), say("assistant", "Hello")]}
    text = FORMATTER.render(parse_conversation(row)).text
    assert text.startswith("<|im_start|>system\n# Tools\n\nYou may call one or more functions")
    assert '<tools>\n{"name": "f"}\n{"name": "g"}\n</tools>' in text
    assert text.endswith(
        "</tool_call><|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
    )
    # The turns of the spans are those of the row, which has no system message.
    assert [span.turn for span in FORMATTER.render(parse_conversation(row)).spans] == [1, 1]


def test_tools_stand_in_the_first_system_turn_only() -> None:
    messages = [say("system", "One."), say("user", "Hi"), say("system", "Two."), say("assistant", "Hello")]
    text = FORMATTER.render(parse_conversation({"tools": [{"name": "f"}], "messages": messages})).text
    assert text.startswith("<|im_start|>system\nOne.\n\n# Tools\n\n")
    assert "<|im_start|>system\nTwo.<|im_end|>" in text
    assert text.count("# Tools") == 1


def test_empty_reasoning_is_none() -> None:
    messages = [{"role": "assistant", "content": "4", "reasoning_content": ""}]
    assert FORMATTER.format_messages(messages) == FORMATTER.format_messages([say("assistant", "4")])


def test_messages_may_be_objects() -> None:
    objects: list[Any] = [Message("user", "Hi"), Message("assistant", "", tool_calls=(ToolCall("f", "{}"),))]
    mappings: list[Any] = [say("user", "Hi"), {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}]
    assert FORMATTER.format_messages(objects) == FORMATTER.format_messages(mappings)


@given(MESSAGES)
def test_every_assistant_message_is_where_its_span_says(messages: list[dict[str, Any]]) -> None:
    messages = [{key: value for key, value in m.items() if key in {"role", "content"}} for m in messages]
    text, spans = FORMATTER.format_messages(messages)
    assert spelled(text, spans) == [m["content"] for m in messages if m["role"] == "assistant"]
    assert text == "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)


@given(MESSAGES, TOOLS)
def test_spans_and_markers_are_in_order_and_disjoint(messages: list[dict[str, Any]], tools: list[Any]) -> None:
    row: dict[str, Any] = {"messages": [*messages, say("assistant", "!")], "tools": tools}
    rendered = FORMATTER.render(parse_conversation(row))
    for places in ([(s.start, s.end) for s in rendered.spans], rendered.markers):
        edges = [0, *(edge for place in places for edge in place), len(rendered.text)]
        assert edges == sorted(edges)
    assert set(spelled(rendered.text, rendered.markers)) == {IM_START, IM_END}
    ends = [(s.start, s.end) for s in rendered.spans if s.kind == "end_of_turn"]
    assert set(ends) <= set(rendered.markers)
    made_by_tools = bool(tools) and row["messages"][0]["role"] != "system"
    assert len(rendered.markers) == 2 * (len(row["messages"]) + made_by_tools)


@given(MESSAGES, TOOLS)
def test_the_chat_template_writes_the_same_text(
    render_template: Render, messages: list[dict[str, Any]], tools: list[Any]
) -> None:
    row: dict[str, Any] = {"messages": [*messages, say("assistant", "!")], "tools": tools}
    expected = FORMATTER.render(parse_conversation(row)).text
    assert render_template("chatml", row["messages"], tools=tools or None) == expected


@given(MESSAGES)
def test_the_generation_prompt_of_the_chat_template_is_the_beginning_of_the_next_turn(
    render_template: Render, messages: list[dict[str, Any]]
) -> None:
    prompt = render_template("chatml", messages, add_generation_prompt=True)
    conversation = parse_conversation({"messages": [*messages, say("assistant", "Hello")]})
    assert FORMATTER.render(conversation).text == f"{prompt}Hello<|im_end|>\n"


@given(TEXTS, TEXTS, st.none() | TEXTS, st.none() | TEXTS)
def test_a_single_turn_is_its_messages(
    instruction: str, response: str, input_text: str | None, system_prompt: str | None
) -> None:
    text, [(start, end)] = FORMATTER.format_conversation(instruction, response, input_text, system_prompt)
    user = f"{instruction}\n\n{input_text}" if input_text else instruction
    messages = [say("system", system_prompt)] if system_prompt else []
    messages += [say("user", user), say("assistant", response)]
    assert (text, [(start, end)]) == FORMATTER.format_messages(messages)
    assert text[start:end] == response


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([say("user", "Hi"), say("bot", "Hello")], "messages: turn 1: unknown role 'bot'"),
        ([{"role": "assistant"}], r"messages: turn 0 \(assistant\): content is missing"),
        (["Hi"], "messages: turn 0: is a string, not an object with role and content"),
        ([], "messages: there are no messages; give at least one"),
    ],
)
def test_messages_that_are_not_valid_are_refused_with_their_turn(messages: list[Any], message: str) -> None:
    with pytest.raises(ConversationError, match=f"^{message}"):
        FORMATTER.format_messages(messages)


def test_messages_without_an_assistant_have_a_text_and_no_spans() -> None:
    assert FORMATTER.format_messages([say("user", "Hi")]) == ("<|im_start|>user\nHi<|im_end|>\n", [])


# --- choosing a formatter ---


@pytest.mark.parametrize("name", ["openai", "messages", "chatml"])
def test_three_names_are_one_format(name: str) -> None:
    formatter = create_formatter(name)
    assert isinstance(formatter, OpenAIMessagesFormatter)
    assert tuple(formatter.control_markers) == (IM_START, IM_END)


def test_the_alpaca_formatter_ends_a_turn_with_eos() -> None:
    formatter = create_formatter("alpaca", eos_token="</s>")
    assert isinstance(formatter, AlpacaFormatter)
    assert tuple(formatter.control_markers) == ("</s>",)
    assert tuple(create_formatter("alpaca").control_markers) == ()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("chat-ml", "did you mean 'chatml'?"),
        ("opnai", "did you mean 'openai'?"),
        ("OpenAI", "use one of openai, messages, chatml, alpaca|did you mean 'openai'"),
        ("", "use one of openai, messages, chatml, alpaca, template, llama3, qwen, mistral, gemma, phi"),
        ("lama3", "did you mean 'llama3'?"),
    ],
)
def test_an_unknown_format_is_refused_with_the_nearest_name(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"sft_conversation_format: there is no format {name!r}; .*({hint})"):
        create_formatter(name)


def test_a_conversation_renders_the_same_from_anywhere() -> None:
    one = Conversation((Message("user", "a"), Message("assistant", "b")), origin="x:1")
    assert FORMATTER.render(one) == FORMATTER.render(Conversation(one.messages, origin="y:2"))
