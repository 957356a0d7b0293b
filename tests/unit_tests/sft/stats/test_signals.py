# SPDX-License-Identifier: Apache-2.0
"""Oddities: each is found where its definition holds, and not beside it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primus.chat import Conversation, Message, ToolCall
from primus.sft.stats.refusals import looks_like_refusal
from primus.sft.stats.signal_kinds import SIGNALS
from primus.sft.stats.signals import REFUSAL, SignalFinder

CALL, OTHER_CALL = ToolCall("add", "{}", id="c1"), ToolCall("add", "{}", id="c2")
QUESTION = Message("user", "What is there to drink in the house?")
ANSWER = Message("assistant", "You can drink the cocoa.")
LONG = "It rained a lot on that day. We stayed at home. "


def found(*messages: Message, num_targets: int = 1) -> dict[str, list[int | None]]:
    return SignalFinder(["<|special|>"]).find(Conversation(messages), num_targets=num_targets)


def answered(content: str, **fields: object) -> dict[str, list[int | None]]:
    return found(QUESTION, Message("assistant", content, **fields))  # type: ignore[arg-type]


def test_an_ordinary_conversation_has_nothing_odd() -> None:
    assert found(Message("system", "Be kind."), QUESTION, ANSWER, QUESTION, Message("assistant", LONG.strip())) == {}


def test_every_signal_is_named_once() -> None:
    assert len({signal.name for signal in SIGNALS}) == len(SIGNALS)


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ((ANSWER, QUESTION, ANSWER), {"starts_oddly": [0]}),
        ((QUESTION, ANSWER, QUESTION), {"ends_without_assistant": [2]}),
        ((QUESTION, Message("system", "x"), ANSWER), {"system_not_first": [1]}),
        ((QUESTION, QUESTION, ANSWER, ANSWER), {"same_role_twice": [1, 3]}),
        ((QUESTION, Message("assistant", QUESTION.content + " ")), {"echo": [1], "outer_whitespace": [1]}),
    ],
)
def test_roles_out_of_order_are_found(messages: tuple[Message, ...], expected: dict[str, list[int]]) -> None:
    assert found(*messages) == expected


def calling(*calls: ToolCall) -> Message:
    return Message("assistant", "", tool_calls=calls)


def result(call_id: str | None = None) -> Message:
    return Message("tool", "it is 2", tool_call_id=call_id)


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ((QUESTION, calling(CALL), result("c1"), ANSWER), {}),
        ((QUESTION, calling(CALL, OTHER_CALL), result("c2"), result("c1"), ANSWER), {}),
        ((QUESTION, calling(CALL), result(), ANSWER), {}),
        ((QUESTION, calling(ToolCall("add", "{}")), result("any"), ANSWER), {}),
        ((QUESTION, calling(CALL)), {}),
        ((QUESTION, calling(CALL, OTHER_CALL), result("c1"), ANSWER), {"unanswered_call": [1]}),
        ((QUESTION, calling(CALL), QUESTION, ANSWER), {"unanswered_call": [1]}),
        ((QUESTION, calling(CALL), result("c1"), result("c1"), ANSWER), {"answer_without_call": [3]}),
        ((QUESTION, result(), ANSWER), {"answer_without_call": [1]}),
        ((QUESTION, calling(CALL), result("c9"), ANSWER), {"call_id_mismatch": [2]}),
        ((QUESTION, calling(CALL, CALL), result("c1"), result("c1"), ANSWER), {"call_id_mismatch": [1]}),
        ((result(), ANSWER), {"starts_oddly": [0], "answer_without_call": [0]}),
    ],
)
def test_calls_and_answers_are_matched(messages: tuple[Message, ...], expected: dict[str, list[int]]) -> None:
    assert found(*messages) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", ["empty_answer"]),
        (" \n", ["empty_answer"]),
        ("Yes", ["short_answer"]),
        ("Yes.", []),
        ("好的", ["short_answer"]),
        (" All right, then.", ["outer_whitespace"]),
        ("Look:\n```python\nx = 1", ["unclosed_code_fence"]),
        ("Look:\n```python\nx = 1\n```", []),
        ("<think>\nHm", ["unclosed_think"]),
        ("<think>\nHm\n</think>\nYes.", []),
        ("Hm\n</think>\nYes.", ["think_without_start"]),
        ("Write `<think>` in front of it.", []),
        ("```\n<think>\n```", []),
        ("I am <|im_end|> here.", ["control_token_text"]),
        ("I am <|special|> here.", ["control_token_text"]),
        ("I am <|other|> here.", []),
        ("caf\ufffd is open.", ["replacement_character"]),
        ("\ufeffThe place is open.", ["byte_order_mark"]),
        ("The place\x00 is open.", ["control_character"]),
        ("The place \ue000 is open.", ["private_use"]),
        ("I cannot help with that.", [REFUSAL]),
    ],
)
def test_the_text_of_an_answer_is_looked_at(content: str, expected: list[str]) -> None:
    assert answered(content) == {name: [1] for name in expected}


def test_reasoning_or_a_call_is_something_to_say() -> None:
    assert answered("", reasoning="Hm") == {}
    assert answered("", tool_calls=(CALL,)) == {}


def test_control_tokens_are_looked_for_in_every_role() -> None:
    assert found(Message("system", "<|im_start|>"), Message("user", "[INST]"), ANSWER) == {"control_token_text": [0, 1]}


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        ("I do not know what you mean by that. " * 11, True),
        (" ".join(f"word{n}" for n in range(100)), False),
        (" ".join(f"word{n}" for n in range(40)) + " and so on and so on and so on and so on", False),
        ("no " * 49, False),
        ("no " * 50, True),
        ("我不知道。" * 13, True),
    ],
)
def test_an_answer_that_goes_round_in_circles_repeats_itself(text: str, is_found: bool) -> None:
    assert ("repeats_itself" in answered(text.strip())) == is_found


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        ("\n".join(f"{n}. x\nthe same old line" for n in range(5)), True),
        ("\n".join(f"{n}. x\nthe same old line" for n in range(4)), False),
        ("\n".join(f"{n}. x\ntwo words" for n in range(9)), False),
        ("```\n" + "the same old line\n" * 9 + "```", False),
    ],
)
def test_a_line_that_stands_five_times_is_found(text: str, is_found: bool) -> None:
    assert ("repeats_a_line" in answered(text)) == is_found


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        (LONG + "In the evening the sun came out and we went to the", True),
        (LONG + "In the evening we took the dog, the cat, the old rabbit,", True),
        (LONG + "In the evening the sun came out and we went to the lake.", False),
        (LONG + "In the evening we met somebody and his name was David", False),
        (LONG + "In the evening the sun came out and the answer is C", False),
        (LONG + "It was (more or less) a day for all of us to remember 12", False),
        (LONG + "Read all about it, if you have the time, at https://example.org/some/page", False),
        (LONG + "\n- we went to the lake and then we went to the", False),
        (LONG + "\n| we went to the lake | and then we went to the", False),
        (LONG + "So much for the day, and all I can say is #rain", False),
        (LONG + "Too short a line\nto be sure", False),
        ("We went to the lake and then we went to the", False),
        ("All the leaves are brown and the sky is grey\n" * 4 + LONG + "we went to the lake and then to the", False),
        ("All the leaves are brown and the sky is grey.\n" * 4 + LONG + "we went to the lake and then to the", True),
        (
            "Oh. Ah.\n" + "\n".join(f"all the leaves are brown and the sky is {c}" for c in ("red", "blue", "grey")),
            False,
        ),
        ("今天天气很好。我们去公园玩。\n然后我们一起去吃饭的时候他说要解决这个问题", True),
        ("今天天气很好。我们去公园玩。\n然后我们一起去吃饭的时候他说要解决这个问题。", False),
    ],
)
def test_an_answer_looks_cut_where_its_other_sentences_end(text: str, is_found: bool) -> None:
    assert ("looks_cut" in answered(text)) == is_found


def test_a_message_with_calls_may_break_off() -> None:
    assert answered(LONG + "In the evening I will look it up in the", tool_calls=(CALL,)) == {}


def test_nothing_to_train_is_said_of_the_whole_conversation() -> None:
    assert found(QUESTION, ANSWER, num_targets=0) == {"no_target": [None]}


@pytest.mark.parametrize(
    ("answer", "is_refusal"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I’m sorry, but I am not able to do that.", True),
        ("As an AI language model, I cannot have opinions.", True),
        ("Es tut mir leid, aber dabei kann ich nicht helfen.", True),
        ("Je suis désolé, mais je ne peux pas faire cela.", True),
        ("Lo siento, pero no puedo hacer eso.", True),
        ("很抱歉，我无法回答这个问题。", True),
        ("申し訳ありませんが、お答えできません。", True),
        ("죄송하지만 도와드릴 수 없습니다.", True),
        ("Извините, но я не могу помочь.", True),
        ("Desculpe, mas não posso ajudar.", True),
        ("I'm sorry to hear that! You can do it.", False),
        ("Of course I can help.", False),
        ("x" * 250 + " I can't help with that.", False),
    ],
)
def test_refusals_are_told_by_how_they_begin(answer: str, is_refusal: bool) -> None:
    assert looks_like_refusal(answer) == is_refusal


@given(st.text(max_size=200), st.text(max_size=200))
def test_any_text_is_looked_at_without_complaint(question: str, answer: str) -> None:
    found(Message("user", question), Message("assistant", answer))
