# SPDX-License-Identifier: Apache-2.0
"""Qwen2.5: the exact text."""

from primus.chat import parse_conversation
from primus.sft.formatters.openai import OpenAIMessagesFormatter
from primus.sft.formatters.qwen import QwenFormatter
from tests.unit_tests.sft.formatters.plain_chats import say, text_of

FORMATTER = QwenFormatter()
CHAT = [say("user", "\nHi "), say("assistant", "  Hello\n")]
CHAT_TEXT = "<|im_start|>user\n\nHi <|im_end|>\n<|im_start|>assistant\n  Hello\n<|im_end|>\n"


def test_without_a_system_message_the_model_introduces_itself() -> None:
    assert text_of(FORMATTER, CHAT) == (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        + CHAT_TEXT
    )


def test_a_system_message_takes_that_place_even_if_it_is_empty() -> None:
    assert text_of(FORMATTER, [say("system", ""), *CHAT]) == "<|im_start|>system\n<|im_end|>\n" + CHAT_TEXT
    # One that comes later does not.
    assert text_of(FORMATTER, [*CHAT, say("system", "s")]) == (
        text_of(FORMATTER, CHAT) + "<|im_start|>system\ns<|im_end|>\n"
    )


def test_the_introduction_is_written_for_no_message() -> None:
    conversation = parse_conversation({"messages": CHAT})
    rendered = FORMATTER.render(conversation)
    assert [(turn.turn, rendered.text[turn.start :][:14]) for turn in rendered.turns] == [
        (0, "<|im_start|>us"),
        (1, "<|im_start|>as"),
    ]
    assert FORMATTER.render_prompt(conversation, 1).text == rendered.text[: rendered.spans[0].start]


def test_with_a_system_message_it_is_chatml() -> None:
    conversation = parse_conversation({"messages": [say("system", " s\n"), *CHAT, *CHAT]})
    assert FORMATTER.render(conversation) == OpenAIMessagesFormatter().render(conversation)
