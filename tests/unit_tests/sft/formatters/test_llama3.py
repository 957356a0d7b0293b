# SPDX-License-Identifier: Apache-2.0
"""Llama 3: the exact text."""

from primus.sft.formatters.llama3 import Llama3Formatter
from tests.unit_tests.sft.formatters.plain_chats import say, text_of

FORMATTER = Llama3Formatter()


def test_a_chat_has_bos_once_and_trimmed_contents() -> None:
    messages = [say("system", " Be brief.\n"), say("user", "\nHi "), say("assistant", "  Hello\n\nthere\u3000\n")]
    assert text_of(FORMATTER, messages) == (
        "<|begin_of_text|>"
        "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello\n\nthere<|eot_id|>"
    )


def test_roles_may_come_in_any_order() -> None:
    messages = [say("assistant", "a"), say("system", "s"), say("system", "t"), say("assistant", "b")]
    heads = [("assistant", "a"), ("system", "s"), ("system", "t"), ("assistant", "b")]
    assert text_of(FORMATTER, messages) == "<|begin_of_text|>" + "".join(
        f"<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>" for role, content in heads
    )
