# SPDX-License-Identifier: Apache-2.0
"""The chat templates that stand beside the formats of model families: they write what the formats write."""

from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

import primus.sft.formatters
from primus.chat import parse_conversation
from primus.errors import RenderError
from primus.sft.formatters.template import TemplateFormatter
from tests.unit_tests.sft.formatters.conftest import Render
from tests.unit_tests.sft.formatters.plain_chats import ALTERNATING, ANY_ORDER, FORMATTERS, chats, say

FOLDER = Path(primus.sft.formatters.__file__).parent
EACH = pytest.mark.parametrize("name", FORMATTERS)


@EACH
@given(st.data())
def test_the_template_of_a_format_writes_the_same_text(name: str, render_template: Render, data: st.DataObject) -> None:
    messages = data.draw(ANY_ORDER | ALTERNATING)
    try:
        expected = FORMATTERS[name].render(parse_conversation({"messages": messages})).text
    except RenderError:
        with pytest.raises(jinja2.TemplateError, match=f"the {name} format has user and assistant in turn"):
            render_template(name, messages)
    else:
        assert render_template(name, messages) == expected


@EACH
@given(st.data())
def test_the_template_of_a_format_writes_the_same_prompts(
    name: str, render_template: Render, data: st.DataObject
) -> None:
    messages = data.draw(chats(FORMATTERS[name]))
    conversation = parse_conversation({"messages": messages})
    for turn, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt = render_template(name, messages[:turn], add_generation_prompt=True)
            assert prompt == FORMATTERS[name].render_prompt(conversation, turn).text


@EACH
def test_the_format_template_finds_the_same_spans(name: str) -> None:
    source = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    template = TemplateFormatter(source, control_tokens=FORMATTERS[name].control_markers)

    @given(chats(FORMATTERS[name]))
    def compare(messages: list[dict[str, Any]]) -> None:
        conversation = parse_conversation({"messages": messages})
        found, ours = template.render(conversation), FORMATTERS[name].render(conversation)
        assert (found.text, found.spans, found.markers) == (ours.text, ours.spans, ours.markers)

    compare()


@EACH
def test_content_may_be_a_list_of_texts(name: str, render_template: Render) -> None:
    parts = [{"type": "text", "text": " Hi"}, {"type": "text", "text": " there "}]
    roles = ("system", "user", "assistant")
    joined = [say(role, " Hi there ") for role in roles]
    assert render_template(name, [{"role": role, "content": parts} for role in roles]) == render_template(name, joined)


CALL = {"type": "function", "function": {"name": "f", "arguments": {}}}


@EACH
@pytest.mark.parametrize(
    ("messages", "tools", "message"),
    [
        ([say("user", "u")], [{"type": "function", "function": {"name": "f"}}], "no form for tools"),
        ([say("user", "u"), say("tool", "4")], None, "text from system, user and assistant alone"),
        ([say("user", "u"), say("bot", "4")], None, "text from system, user and assistant alone"),
        ([say("user", "u"), {**say("assistant", ""), "tool_calls": [CALL]}], None, "system, user and assistant alone"),
        ([say("user", "u"), {**say("assistant", "a"), "reasoning_content": "r"}], None, "user and assistant alone"),
    ],
)
def test_what_is_not_plain_chat_is_refused(
    name: str, messages: list[dict[str, Any]], tools: Any, message: str, render_template: Render
) -> None:
    with pytest.raises(jinja2.TemplateError, match=f"the {name} format has .*{message}"):
        render_template(name, messages, tools=tools)
