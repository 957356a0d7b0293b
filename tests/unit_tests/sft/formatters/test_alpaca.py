# SPDX-License-Identifier: Apache-2.0
"""The prompt of Stanford Alpaca: one instruction, one response."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primus.chat import parse_conversation
from primus.errors import RenderError
from primus.sft.formatters import AlpacaFormatter
from tests.unit_tests.sft.formatters.conftest import Render
from tests.unit_tests.sft.formatters.generated import TEXTS

FORMATTER = AlpacaFormatter(end_of_turn="</s>")
WITHOUT_INPUT = """\
Below is an instruction that describes a task. Write a response that appropriately completes the request.

### Instruction:
Name a colour.

### Response:
Red.</s>"""
WITH_INPUT = """\
Below is an instruction that describes a task, paired with an input that provides further context. Write a response \
that appropriately completes the request.

### Instruction:
Add them.

### Input:
2 2

### Response:
4</s>"""


def say(role: str, content: str, **fields: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **fields}


@pytest.mark.parametrize(
    ("row", "text", "response"),
    [
        ({"instruction": "Name a colour.", "output": "Red."}, WITHOUT_INPUT, "Red."),
        ({"instruction": "Name a colour.", "input": "", "output": "Red."}, WITHOUT_INPUT, "Red."),
        ({"instruction": "Add them.", "input": "2 2", "output": "4"}, WITH_INPUT, "4"),
        ({"messages": [say("user", "Name a colour."), say("assistant", "Red.")]}, WITHOUT_INPUT, "Red."),
    ],
)
def test_the_prompt_has_the_words_of_stanford_alpaca(row: dict[str, Any], text: str, response: str) -> None:
    rendered = FORMATTER.render(parse_conversation(row))
    assert rendered.text == text
    assert [(text[s.start : s.end], s.kind, s.turn) for s in rendered.spans] == [
        (response, "content", 1),
        ("</s>", "end_of_turn", 1),
    ]
    assert [text[start:end] for start, end in rendered.markers] == ["</s>"]


def test_a_system_message_replaces_the_introduction() -> None:
    row = {"system": "You are a painter.", "instruction": "Name a colour.", "output": "Red."}
    rendered = FORMATTER.render(parse_conversation(row))
    assert rendered.text == "You are a painter.\n\n### Instruction:\nName a colour.\n\n### Response:\nRed.</s>"
    assert {span.turn for span in rendered.spans} == {2}


def test_without_an_eos_token_there_is_no_end_of_turn() -> None:
    rendered = AlpacaFormatter().render(parse_conversation({"instruction": "a", "output": "b"}))
    assert rendered.text.endswith("### Response:\nb")
    assert [span.kind for span in rendered.spans] == ["content"]
    assert rendered.markers == ()


def test_the_weight_of_the_message_is_that_of_its_spans() -> None:
    row = {"messages": [say("user", "a"), say("assistant", "b", weight=0.25)]}
    assert {span.weight for span in FORMATTER.render(parse_conversation(row)).spans} == {0.25}


@given(TEXTS, TEXTS, st.none() | TEXTS, st.none() | TEXTS)
def test_the_response_is_where_its_span_says(
    instruction: str, response: str, input_text: str | None, system_prompt: str | None
) -> None:
    text, [(start, end)] = FORMATTER.format_conversation(instruction, response, input_text, system_prompt)
    assert text[start:end] == response
    assert text[:start].endswith("\n\n### Response:\n")
    assert text[end:] == "</s>"


@given(TEXTS, TEXTS, TEXTS)
def test_the_chat_template_writes_the_same_text(
    render_template: Render, system: str, instruction: str, response: str
) -> None:
    messages = [say("system", system), say("user", instruction), say("assistant", response)]
    for turns in (messages, messages[1:]):
        expected = FORMATTER.render(parse_conversation({"messages": turns})).text
        assert render_template("alpaca", turns, eos_token="</s>") == expected
        prompt = render_template("alpaca", turns[:-1], eos_token="</s>", add_generation_prompt=True)
        assert f"{prompt}{response}</s>" == expected


@pytest.mark.parametrize(
    ("row", "message", "reason"),
    [
        ({"messages": [say("user", "a"), say("assistant", "b"), say("user", "c"), say("assistant", "d")]},
         "the alpaca format has one user and one assistant turn, but the row has user, assistant, user, assistant; use",
         "not_single_turn"),
        ({"messages": [say("assistant", "b")]}, "but the row has assistant; use", "not_single_turn"),
        ({"instruction": "a", "output": "b", "history": [["c", "d"]]}, "but the row has user, assistant, user, assis",
         "not_single_turn"),
        ({"messages": [say("user", "a"), say("assistant", "b")], "tools": [{"name": "f"}]},
         "the alpaca format has no form for tools, tool calls or reasoning; use", "no_form"),
        ({"messages": [say("user", "a"), say("assistant", "b", tool_calls=[{"name": "f"}])]},
         "the alpaca format has no form for tools, tool calls or reasoning; use", "no_form"),
        ({"messages": [say("user", "a"), say("assistant", "b", reasoning_content="hm")]},
         "the alpaca format has no form for tools, tool calls or reasoning; use", "no_form"),
    ],
)  # fmt: skip
def test_what_the_format_has_no_form_for_is_refused(row: dict[str, Any], message: str, reason: str) -> None:
    with pytest.raises(RenderError, match=r"^a\.jsonl:5: .*" + re.escape(message)) as refused:
        FORMATTER.render(parse_conversation(row, origin="a.jsonl:5"))
    assert refused.value.reason == reason
