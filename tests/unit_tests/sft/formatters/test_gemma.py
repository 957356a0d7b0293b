# SPDX-License-Identifier: Apache-2.0
"""Gemma: the exact text, and where the system message goes."""

from primus.chat import parse_conversation
from primus.sft.formatters.gemma import GemmaFormatter
from tests.unit_tests.sft.formatters.plain_chats import say, text_of

FORMATTER = GemmaFormatter()
CHAT = [say("user", "\nHi "), say("assistant", "  Hello\n"), say("user", "Bye"), say("assistant", "")]


def test_the_assistant_is_the_model_and_contents_are_trimmed() -> None:
    assert text_of(FORMATTER, CHAT) == (
        "<bos>"
        "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n"
        "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n<end_of_turn>\n"
    )


def test_the_system_message_stands_untrimmed_in_the_first_user_turn() -> None:
    plain = text_of(FORMATTER, CHAT)
    for system in (" Be brief.\n", ""):
        assert text_of(FORMATTER, [say("system", system), *CHAT]) == plain.replace("user\nHi", f"user\n{system}\n\nHi")


def test_the_words_of_the_system_are_a_piece_between_two_of_the_user() -> None:
    rendered = FORMATTER.render(parse_conversation({"messages": [say("system", "Be brief."), *CHAT[:2]]}))
    assert [(piece.turn, rendered.text[piece.start : piece.end]) for piece in rendered.turns] == [
        (1, "<start_of_turn>user\n"),
        (0, "Be brief.\n\n"),
        (1, "Hi<end_of_turn>\n"),
        (2, "<start_of_turn>model\nHello<end_of_turn>\n"),
    ]
