# SPDX-License-Identifier: Apache-2.0
"""Whose tokens they are, next to a loop over tokens that knows nothing of spans."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from primus.chat import Conversation, Message
from primus.sft.encoding import special_ids, trace_conversation
from primus.sft.formatters import ConversationFormatter, OpenAIMessagesFormatter, create_formatter
from primus.sft.stats.token_counts import ConversationTokens, count_tokens
from primus.sft.tokenizer import SFTTokenizer, load_tokenizer

EXAMPLES = Path(__file__).parents[4] / "examples" / "data"
TOKENIZER = EXAMPLES / "demo-tokenizer" / "tokenizer.json"


@pytest.fixture(scope="module")
def tokenizer() -> SFTTokenizer:
    return load_tokenizer(str(TOKENIZER))


def counted(
    conversation: Conversation,
    tokenizer: SFTTokenizer,
    formatter: ConversationFormatter | None = None,
    *,
    add_bos: bool | None = None,
    add_eos: bool = False,
) -> ConversationTokens:
    traced = trace_conversation(
        conversation, formatter=formatter or OpenAIMessagesFormatter(), tokenizer=tokenizer,
        supervise_end_of_turn=True, add_bos=add_bos, add_eos=add_eos,
    )  # fmt: skip
    front, back = special_ids(tokenizer, add_bos=add_bos, add_eos=add_eos)
    return count_tokens(traced, num_front=len(front), num_back=len(back))


def test_each_message_has_its_content_and_five_tokens_around_it(tokenizer: SFTTokenizer) -> None:
    """Both numbers from the `tokenizers` library alone: the header, its newline, the end, its newline."""
    reference = Tokenizer.from_file(str(TOKENIZER))
    messages = (Message("user", "You can call me David."), Message("assistant", "Sure, you are David."))
    tokens = counted(Conversation(messages), tokenizer)
    around = reference.encode("<|im_start|>").ids, reference.encode("<|im_end|>\n").ids
    for turn, message in zip(tokens.turns, messages, strict=True):
        header = len(around[0]) + len(reference.encode(f"{message.role}\n").ids)
        assert turn.num_content == len(reference.encode(message.content).ids)
        assert turn.num_overhead == header + len(around[1])
        assert turn.is_located
    assert tokens.num_outside == 0
    assert tokens.num_targets == tokens.turns[1].num_content + 1
    assert [turn.num_targets for turn in tokens.trained_turns] == [tokens.num_targets]
    assert tokens.trained_turns[0].end == tokens.num_tokens - 1


CONTENTS = st.lists(
    st.sampled_from(["user", "assistant", "\n", " ", "Hello", "you are", "<|im_end|>", "\u4f60", "!", ""]), max_size=5
).map("".join)
CONVERSATIONS = st.lists(st.tuples(st.sampled_from(["system", "user", "tool", "assistant"]), CONTENTS), max_size=5).map(
    lambda turns: Conversation(
        (*(Message(role, content) for role, content in turns), Message("assistant", "Yes."))  # type: ignore[arg-type]
    )
)


@settings(max_examples=60)
@given(CONVERSATIONS, st.booleans())
@example(Conversation((Message("user", "use"), Message("assistant", "Yes."))), False)  # stands in the header, too
def test_every_token_is_counted_once_and_where_it_stands(conversation: Conversation, add_eos: bool) -> None:
    tokenizer = load_tokenizer(str(TOKENIZER))
    tokens = counted(conversation, tokenizer, add_eos=add_eos)
    assert sum(t.num_content + t.num_overhead for t in tokens.turns) + tokens.num_outside == tokens.num_tokens
    assert tokens.num_outside == add_eos
    traced = trace_conversation(
        conversation, formatter=OpenAIMessagesFormatter(), tokenizer=tokenizer, supervise_end_of_turn=True
    )
    text, expected_content, expected_all = traced.rendered.text, Counter[int](), Counter[int]()
    start = 0
    for turn, message in enumerate(conversation.messages):
        content_start = start + len(f"<|im_start|>{message.role}\n")
        content_end = content_start + len(message.content)
        end = content_end + len("<|im_end|>\n")
        assert text[content_start:content_end] == message.content
        for first, last in traced.offsets_T2.tolist():
            expected_all[turn] += start <= first < end
            expected_content[turn] += content_start <= first and last <= content_end
        start = end
    assert {t.turn: t.num_content for t in tokens.turns} == dict(expected_content)
    assert {t.turn: t.num_content + t.num_overhead for t in tokens.turns} == dict(expected_all)


def test_tools_without_a_system_message_belong_to_no_message(tokenizer: SFTTokenizer) -> None:
    messages = (Message("user", "Hi"), Message("assistant", "Hello"))
    plain = counted(Conversation(messages), tokenizer)
    with_tools = counted(Conversation(messages, tools=('{"name": "f"}',)), tokenizer)
    assert with_tools.turns == plain.turns
    assert with_tools.num_outside == with_tools.num_tokens - plain.num_tokens > 0


def test_tools_behind_a_system_message_are_around_it(tokenizer: SFTTokenizer) -> None:
    messages = (Message("system", "Be kind."), Message("user", "Hi"), Message("assistant", "Hello"))
    plain = counted(Conversation(messages), tokenizer)
    with_tools = counted(Conversation(messages, tools=('{"name": "f"}',)), tokenizer)
    assert with_tools.turns[0].num_content == plain.turns[0].num_content
    assert with_tools.turns[0].num_overhead > plain.turns[0].num_overhead
    assert with_tools.num_outside == 0


def test_a_message_that_the_format_rewrites_is_said_to_be(tokenizer: SFTTokenizer) -> None:
    """The prompt of Alpaca puts a heading between instruction and input."""
    user = Message("user", "Add.\n\n1 and 2", input_start=6)
    tokens = counted(
        Conversation((user, Message("assistant", "3"))), tokenizer, create_formatter("alpaca", eos_token="")
    )
    assert [turn.is_located for turn in tokens.turns] == [False, True]
    assert tokens.turns[0].num_content > 0


def test_a_turn_without_weight_is_no_trained_turn(tokenizer: SFTTokenizer) -> None:
    messages = (Message("user", "Hi"), Message("assistant", "Hello", weight=0), Message("assistant", "Bye"))
    tokens = counted(Conversation(messages), tokenizer)
    assert len(tokens.trained_turns) == 1
    assert sum(turn.num_targets for turn in tokens.trained_turns) == tokens.num_targets


def test_bos_and_eos_belong_to_no_message(lossless_tokenizers: dict[str, SFTTokenizer]) -> None:
    tokenizer = lossless_tokenizers["sentencepiece bpe, ChatML as control symbols"]
    conversation = Conversation((Message("user", "Hi"), Message("assistant", "Hello")))
    plain = counted(conversation, tokenizer, add_bos=False)
    both = counted(conversation, tokenizer, add_bos=True, add_eos=True)
    assert both.turns == plain.turns
    assert (plain.num_outside, both.num_outside) == (0, 2)
    assert both.trained_turns[0].end == plain.trained_turns[0].end + 1
