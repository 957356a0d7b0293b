# SPDX-License-Identifier: Apache-2.0
"""Phi-3: the exact text."""

from primus.chat import parse_conversation
from primus.sft.formatters.phi import PhiFormatter
from tests.unit_tests.sft.formatters.plain_chats import say, text_of

FORMATTER = PhiFormatter()
CHAT = [say("system", " Be brief."), say("user", "\nHi "), say("assistant", "  Hello\n")]


def test_a_chat_ends_with_endoftext_and_nothing_is_trimmed() -> None:
    assert text_of(FORMATTER, CHAT) == (
        "<|system|>\n Be brief.<|end|>\n<|user|>\n\nHi <|end|>\n<|assistant|>\n  Hello\n<|end|>\n<|endoftext|>"
    )


def test_the_last_endoftext_is_a_marker_of_no_message_and_not_trained() -> None:
    rendered = FORMATTER.render(parse_conversation({"messages": CHAT}))
    end = len(rendered.text)
    assert rendered.markers[-1] == (end - len("<|endoftext|>"), end)
    assert rendered.turns[-1].end == rendered.markers[-1][0]
    assert [rendered.text[span.start : span.end] for span in rendered.spans] == ["  Hello\n", "<|end|>"]


def test_a_prompt_has_no_endoftext() -> None:
    prompt = FORMATTER.render_prompt(parse_conversation({"messages": CHAT}), 2)
    assert prompt.text == "<|system|>\n Be brief.<|end|>\n<|user|>\n\nHi <|end|>\n<|assistant|>\n"
