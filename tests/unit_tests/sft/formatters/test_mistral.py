# SPDX-License-Identifier: Apache-2.0
"""Mistral version 3: the exact text, and where the system message goes."""

from primus.chat import parse_conversation
from primus.sft.formatters.mistral import MistralFormatter
from tests.unit_tests.sft.formatters.plain_chats import say, text_of

FORMATTER = MistralFormatter()
CHAT = [say("user", " Hi "), say("assistant", "  Hello\n"), say("user", "Bye"), say("assistant", "Good bye")]


def test_the_user_stands_in_inst_and_answers_are_trimmed() -> None:
    assert text_of(FORMATTER, CHAT) == "<s>[INST]  Hi [/INST] Hello</s>[INST] Bye[/INST] Good bye</s>"


def test_the_space_in_front_of_an_answer_is_the_models() -> None:
    conversation = parse_conversation({"messages": CHAT[:2]})
    rendered = FORMATTER.render(conversation)
    assert FORMATTER.render_prompt(conversation, 1).text == "<s>[INST]  Hi [/INST]"
    assert [rendered.text[span.start : span.end] for span in rendered.spans] == [" Hello", "</s>"]


def test_an_empty_answer_is_its_space() -> None:
    assert text_of(FORMATTER, [say("user", ""), say("assistant", "\n")]) == "<s>[INST] [/INST] </s>"


def test_the_system_message_stands_in_the_last_user_message() -> None:
    chat = [say("system", "Be brief. "), *CHAT]
    assert text_of(FORMATTER, chat) == "<s>[INST]  Hi [/INST] Hello</s>[INST] Be brief. \n\nBye[/INST] Good bye</s>"
    assert text_of(FORMATTER, chat[:3]) == "<s>[INST] Be brief. \n\n Hi [/INST] Hello</s>"
    assert text_of(FORMATTER, chat[:4]) == "<s>[INST]  Hi [/INST] Hello</s>[INST] Be brief. \n\nBye[/INST]"


def test_the_system_message_moves_on_from_prompt_to_prompt() -> None:
    conversation = parse_conversation({"messages": [say("system", "Be brief."), *CHAT]})
    assert FORMATTER.render_prompt(conversation, 2).text == "<s>[INST] Be brief.\n\n Hi [/INST]"
    assert FORMATTER.render_prompt(conversation, 4).text == (
        "<s>[INST]  Hi [/INST] Hello</s>[INST] Be brief.\n\nBye[/INST]"
    )


def test_the_words_of_the_system_are_a_piece_between_two_of_the_user() -> None:
    rendered = FORMATTER.render(parse_conversation({"messages": [say("system", "Be brief."), *CHAT[:2]]}))
    assert [(piece.turn, rendered.text[piece.start : piece.end]) for piece in rendered.turns] == [
        (1, "[INST] "),
        (0, "Be brief.\n\n"),
        (1, " Hi [/INST]"),
        (2, " Hello</s>"),
    ]
