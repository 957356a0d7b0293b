# SPDX-License-Identifier: Apache-2.0
"""What holds for the format of every model family: spans, markers, pieces, prompts, and what has no form."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primus.chat import Conversation, parse_conversation
from primus.errors import RenderError
from primus.sft.formatters.plain_chat import PlainChatFormatter
from primus.sft.formatters.rendered import RenderedConversation
from tests.unit_tests.sft.formatters.plain_chats import FORMATTERS, chats, say

NAMES = list(FORMATTERS)
TRIMMED = {"llama3", "mistral", "gemma"}
EACH = pytest.mark.parametrize("name", NAMES)


def answers(conversation: Conversation) -> list[int]:
    return [turn for turn, message in enumerate(conversation.messages) if message.role == "assistant"]


def content_as_rendered(name: str, content: str) -> str:
    if name in TRIMMED:
        content = content.strip()
    return f" {content}" if name == "mistral" else content


def system_moves_on(formatter: PlainChatFormatter, conversation: Conversation) -> bool:
    """Whether an earlier prompt has the system message in another place than the whole text."""
    return formatter.system_place == "last_user" and conversation.messages[0].role == "system"


@EACH
@given(st.data())
def test_spans_hold_each_answer_as_rendered_and_its_end(name: str, data: st.DataObject) -> None:
    formatter = FORMATTERS[name]
    conversation = parse_conversation({"messages": data.draw(chats(formatter))})
    rendered = formatter.render(conversation)
    expected = []
    for turn in answers(conversation):
        content = content_as_rendered(name, conversation.messages[turn].content)
        expected += [(content, "content", turn), (formatter.end_of_turn, "end_of_turn", turn)]
    assert [(rendered.text[s.start : s.end], s.kind, s.turn) for s in rendered.spans] == expected
    ends = [(s.start, s.end) for s in rendered.spans if s.kind == "end_of_turn"]
    assert set(ends) <= set(rendered.markers)
    # The end stands right behind its content.
    assert [s.end for s in rendered.spans[::2]] == [start for start, _ in ends]


@EACH
@given(st.data())
def test_spans_markers_and_pieces_are_in_order_and_disjoint(name: str, data: st.DataObject) -> None:
    formatter = FORMATTERS[name]
    rendered = formatter.render(parse_conversation({"messages": data.draw(chats(formatter))}))
    for places in (rendered.spans, rendered.turns):
        assert_in_order([(place.start, place.end) for place in places], len(rendered.text))
    assert_in_order(list(rendered.markers), len(rendered.text))
    assert {rendered.text[start:end] for start, end in rendered.markers} <= set(formatter.control_markers)
    for span in rendered.spans:
        assert any(p.turn == span.turn and p.start <= span.start and span.end <= p.end for p in rendered.turns)


@EACH
@given(st.data())
def test_every_message_is_in_the_text_once_and_changes_no_marker(name: str, data: st.DataObject) -> None:
    """What is said changes no marker, and is in the text once, in a piece of its own message."""
    formatter = FORMATTERS[name]
    messages = data.draw(chats(formatter))
    lettered = [say(m["role"], f"content{turn}") for turn, m in enumerate(messages)]
    rendered = formatter.render(parse_conversation({"messages": lettered}))
    for turn in range(len(messages)):
        assert rendered.text.count(f"content{turn}") == 1
        pieces = "".join(rendered.text[p.start : p.end] for p in rendered.turns if p.turn == turn)
        assert f"content{turn}" in pieces
    real = formatter.render(parse_conversation({"messages": messages}))
    assert spelled(real) == spelled(rendered)


@EACH
@given(st.data())
def test_a_prompt_is_what_stands_before_the_answer(name: str, data: st.DataObject) -> None:
    """But for a Mistral chat with a system message, which stands in the last user message, wherever that is."""
    formatter = FORMATTERS[name]
    conversation = parse_conversation({"messages": data.draw(chats(formatter))})
    rendered = formatter.render(conversation)
    starts = {s.turn: s.start for s in rendered.spans if s.kind == "content"}
    turns = answers(conversation)
    if system_moves_on(formatter, conversation):
        turns = [turn for turn in turns if not any(m.role == "user" for m in conversation.messages[turn:])]
    for turn in turns:
        prompt = formatter.render_prompt(conversation, turn)
        assert prompt.text == rendered.text[: starts[turn]]
        assert prompt.spans == ()
        assert prompt.markers == tuple(m for m in rendered.markers if m[1] <= starts[turn])
        assert [p.turn for p in prompt.turns if p.turn < turn] == [p.turn for p in rendered.turns if p.turn < turn]


@EACH
@given(st.data())
def test_a_prompt_depends_on_nothing_behind_it(name: str, data: st.DataObject) -> None:
    formatter = FORMATTERS[name]
    messages = data.draw(chats(formatter))
    conversation = parse_conversation({"messages": messages})
    turn = data.draw(st.sampled_from(answers(conversation)))
    alone = parse_conversation({"messages": [*messages[:turn], say("assistant", "other")]})
    assert formatter.render_prompt(conversation, turn) == formatter.render_prompt(alone, turn)


@EACH
def test_a_prompt_is_for_an_answer(name: str) -> None:
    conversation = parse_conversation({"messages": [say("user", "Hi"), say("assistant", "Hello")]})
    with pytest.raises(ValueError, match=r"^turn 0 is the user's, not the assistant's$"):
        FORMATTERS[name].render_prompt(conversation, 0)


@EACH
def test_each_answer_has_the_weight_of_its_message(name: str) -> None:
    messages = [say("user", "Hi"), say("assistant", "Hello"), say("user", "Bye"), say("assistant", "Bye")]
    messages[1]["weight"] = 0
    rendered = FORMATTERS[name].render(parse_conversation({"messages": messages}))
    assert [(s.turn, s.weight) for s in rendered.spans] == [(1, 0.0), (1, 0.0), (3, 1.0), (3, 1.0)]


CALL = {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]}


@EACH
@pytest.mark.parametrize(
    ("row", "what"),
    [
        (
            {"messages": [say("user", "Hi"), say("assistant", "!")], "tools": [{"name": "f"}]},
            "the {} format has no form for tools",
        ),
        ({"messages": [say("user", "Hi"), CALL]}, r"turn 1 \(assistant\): the {} format has no form for tool calls"),
        (
            {"messages": [say("user", "Hi"), say("assistant", "!"), say("tool", "4"), say("assistant", "!")]},
            r"turn 2 \(tool\): the {} format has no form for tool answers",
        ),
        (
            {"messages": [say("user", "Hi"), {**say("assistant", "!"), "reasoning_content": "Hm."}]},
            r"turn 1 \(assistant\): the {} format has no form for reasoning",
        ),
    ],
)
def test_what_is_not_plain_chat_is_refused_with_its_place(name: str, row: dict[str, Any], what: str) -> None:
    conversation = parse_conversation(row, origin="a.jsonl:7")
    expected = f"^a.jsonl:7: {what.format(name)}; use sft_conversation_format: template$"
    turn = answers(conversation)[-1]
    for render in (FORMATTERS[name].render, lambda conversation: FORMATTERS[name].render_prompt(conversation, turn)):
        with pytest.raises(RenderError, match=expected) as caught:
            render(conversation)
        assert caught.value.reason == "no_form"


@pytest.mark.parametrize("name", ["mistral", "gemma"])
@pytest.mark.parametrize(
    ("roles", "turn", "role", "wanted"),
    [
        (["assistant"], 0, "assistant", "user"),
        (["system", "assistant"], 1, "assistant", "user"),
        (["user", "user", "assistant"], 1, "user", "assistant"),
        (["user", "assistant", "assistant"], 2, "assistant", "user"),
        (["system", "system", "user", "assistant"], 1, "system", "user"),
        (["user", "system", "assistant"], 1, "system", "assistant"),
    ],
)
def test_user_and_assistant_have_to_speak_in_turn(
    name: str, roles: list[str], turn: int, role: str, wanted: str
) -> None:
    conversation = parse_conversation({"messages": [say(role, "!") for role in roles]}, origin="a.jsonl:7")
    message = (
        rf"^a.jsonl:7: turn {turn} \({role}\): the {name} format has user and assistant in turn after at most one"
        rf" system message, so this must be the {wanted}; merge or drop turns, or use"
        r" sft_conversation_format: template$"
    )
    with pytest.raises(RenderError, match=message) as caught:
        FORMATTERS[name].render(conversation)
    assert caught.value.reason == "turn_order"
    with pytest.raises(RenderError, match=message):
        FORMATTERS[name].render_prompt(conversation, roles.index("assistant"))


@EACH
def test_no_bos_is_put_in_front_and_only_mistral_looks_ahead(name: str) -> None:
    assert FORMATTERS[name].writes_bos is True
    assert FORMATTERS[name].is_turn_by_turn is (name != "mistral")


def spelled(rendered: RenderedConversation) -> list[str]:
    return [rendered.text[start:end] for start, end in rendered.markers]


def assert_in_order(places: list[tuple[int, int]], length: int) -> None:
    edges = [0, *(edge for place in places for edge in place), length]
    assert edges == sorted(edges)
