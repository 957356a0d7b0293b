# SPDX-License-Identifier: Apache-2.0
"""Long conversations made to fit: what is kept, what is trained of it, and what is counted as lost."""

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from primus.chat import Conversation, Message, ToolCall
from primus.errors import RenderError
from primus.sft.encoding import EncodedConversation, SuperviseTurns, TracedConversation, trace_conversation
from primus.sft.formatters import ConversationFormatter, OpenAIMessagesFormatter, TemplateFormatter, create_formatter
from primus.sft.formatters.openai import assistant_text
from primus.sft.tokenizer import SFTTokenizer
from primus.sft.truncation import TruncatedConversation, truncate, turns_with_targets
from tests.unit_tests.sft.test_laws import decode_behind, quick, texts

Shortening = Literal["right", "keep_last_turns", "window"]
POLICIES: tuple[Shortening, ...] = ("right", "keep_last_turns", "window")
SHORTENED: tuple[Shortening, ...] = ("keep_last_turns", "window")

# User and assistant in turn, as Llama 2 has it: the system's words stand in the first user message.
FOLDED = """{%- set system = messages[0].content if messages[0].role == 'system' else none -%}
{%- set rest = messages[1:] if system is not none else messages -%}
{%- for m in rest -%}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('user and assistant take turns') }}{% endif -%}
{%- if m.role == 'user' -%}
{{ '<|im_start|>' + ('<<' + system + '>>' if loop.first and system is not none else '') + m.content }}
{%- else -%}
{{ '<|im_end|>' + m.content + '<|endoftext|>' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_end|>' }}{% endif -%}"""
# Like Qwen3: what the assistant thought is written behind the last question only.
THINKING = """{%- set ns = namespace(last=-1) -%}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor -%}
{%- for m in messages -%}
{{ '<|im_start|>' + m.role + '\\n' }}
{%- if m.role == 'assistant' and m.reasoning_content and loop.index0 > ns.last -%}
{{ '<think>' + m.reasoning_content + '</think>' }}
{%- endif -%}
{{ m.content + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}"""


def template(source: str) -> TemplateFormatter:
    return TemplateFormatter(
        source,
        control_tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        special_tokens={"eos_token": "<|endoftext|>"},
    )


FORMATTERS: dict[str, ConversationFormatter] = {
    "openai": OpenAIMessagesFormatter(),
    "llama3": create_formatter("llama3"),
    "folded": template(FOLDED),
    "thinking": template(THINKING),
}


def tracer(
    tokenizer: SFTTokenizer,
    formatter: ConversationFormatter,
    *,
    supervise_turns: SuperviseTurns = "all",
    supervise_end_of_turn: bool = True,
    add_bos: bool | None = None,
    add_eos: bool = False,
) -> Callable[[Conversation], TracedConversation]:
    return lambda conversation: trace_conversation(
        conversation,
        formatter=formatter,
        tokenizer=tokenizer,
        supervise_end_of_turn=supervise_end_of_turn,
        supervise_turns=supervise_turns,
        add_bos=add_bos,
        add_eos=add_eos,
    )


def say(role: Literal["system", "user", "assistant", "tool"], text: str) -> Message:
    return Message(role, text)


def talk(*messages: Message, tools: Sequence[str] = ()) -> Conversation:
    return Conversation(messages, tuple(tools), origin="talk.jsonl:7")


WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]
LONG = talk(
    say("system", "Be brief."),
    *(message for word in WORDS for message in (say("user", f"Say {word}!"), say("assistant", f"{word}."))),
)


def cut(
    conversation: Conversation,
    tokenizer: SFTTokenizer,
    policy: Shortening,
    max_tokens: int,
    *,
    formatter: str = "openai",
    supervise_turns: SuperviseTurns = "all",
) -> TruncatedConversation:
    encode = tracer(tokenizer, FORMATTERS[formatter], supervise_turns=supervise_turns)
    return truncate(encode(conversation), policy=policy, max_tokens=max_tokens, encode=encode)


def trained_turns(truncated: TruncatedConversation) -> list[list[int]]:
    return [turns_with_targets(sequence).tolist() for sequence in truncated.sequences]


def test_right_keeps_the_beginning_up_to_the_last_whole_turn(chatml_tokenizer: SFTTokenizer) -> None:
    whole = tracer(chatml_tokenizer, FORMATTERS["openai"])(LONG).encoded
    third_end = int(whole.token_spans_K2[whole.turns_K == 6].max())
    fourth_end = int(whole.token_spans_K2[whole.turns_K == 8].max())
    for max_tokens in range(third_end, fourth_end):
        kept = cut(LONG, chatml_tokenizer, "right", max_tokens)
        assert (trained_turns(kept), kept.num_untrained_turns) == ([[2, 4, 6]], 3)
        text = chatml_tokenizer.decode(kept.sequences[0].tokens_T)
        assert text.endswith("gamma.<|im_end|>"), "neither a header nor half an answer stands at the end"
    assert trained_turns(cut(LONG, chatml_tokenizer, "right", fourth_end)) == [[2, 4, 6, 8]]


def test_right_keeps_the_end_of_a_turn_that_is_not_supervised(chatml_tokenizer: SFTTokenizer) -> None:
    encode = tracer(chatml_tokenizer, FORMATTERS["openai"], supervise_end_of_turn=False)
    whole = encode(LONG)
    max_tokens = int(whole.encoded.token_spans_K2[3, 1])
    kept = truncate(whole, policy="right", max_tokens=max_tokens, encode=encode)
    assert chatml_tokenizer.decode(kept.sequences[0].tokens_T).endswith("beta.<|im_end|>")
    cut_turn = truncate(whole, policy="right", max_tokens=max_tokens - 1, encode=encode)
    assert trained_turns(cut_turn) == [[2]], "a turn without its end is no whole turn"


def test_the_last_turns_are_rendered_again_behind_the_system_message(chatml_tokenizer: SFTTokenizer) -> None:
    encode = tracer(chatml_tokenizer, FORMATTERS["openai"])
    shorter = talk(LONG.messages[0], *LONG.messages[-6:])
    max_tokens = len(encode(shorter).encoded.tokens_T)
    for room in range(5):
        kept = cut(LONG, chatml_tokenizer, "keep_last_turns", max_tokens + room)
        [sequence] = kept.sequences
        assert np.array_equal(sequence.tokens_T, encode(shorter).encoded.tokens_T)
        assert (trained_turns(kept), kept.num_untrained_turns) == ([[8, 10, 12]], 3)
        assert sequence.is_truncated
    assert trained_turns(cut(LONG, chatml_tokenizer, "keep_last_turns", max_tokens - 1)) == [[10, 12]]


def test_windows_train_each_turn_once_with_what_history_fits(chatml_tokenizer: SFTTokenizer) -> None:
    encode = tracer(chatml_tokenizer, FORMATTERS["openai"])
    of_four = talk(LONG.messages[0], *LONG.messages[-8:])
    kept = cut(LONG, chatml_tokenizer, "window", len(encode(of_four).encoded.tokens_T))
    assert (trained_turns(kept), kept.num_untrained_turns) == ([[2, 4, 6, 8], [10, 12]], 0)
    second = kept.sequences[1]
    assert np.array_equal(second.tokens_T, encode(of_four).encoded.tokens_T), "two exchanges before are context"
    assert second.turns_K.tolist() == [6, 6, 8, 8, 10, 10, 12, 12]
    assert second.weights_K.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_only_the_last_turn_is_trained_where_only_that_one_is_asked_for(chatml_tokenizer: SFTTokenizer) -> None:
    for policy in SHORTENED:
        kept = cut(LONG, chatml_tokenizer, policy, 60, supervise_turns="last")
        assert (trained_turns(kept), kept.num_untrained_turns) == ([[12]], 0)
    lost = cut(LONG, chatml_tokenizer, "right", 60, supervise_turns="last")
    assert lost == TruncatedConversation((), 1)


def test_messages_behind_the_last_answer_take_no_room(chatml_tokenizer: SFTTokenizer) -> None:
    question = talk(*LONG.messages, say("user", "and? " * 200))
    for policy in SHORTENED:
        assert trained_turns(cut(question, chatml_tokenizer, policy, 60))[-1][-1] == 12


CALL = Message("assistant", "", tool_calls=(ToolCall("look", '{"x": 1}', id="c"),))
AGENT = talk(
    say("system", "Look."),
    say("user", "What is there?"), CALL, Message("tool", "a wall", tool_call_id="c"), say("assistant", "A wall."),
    say("user", "And now?"), CALL, Message("tool", "a door", tool_call_id="c"), CALL,
    Message("tool", "a key", tool_call_id="c"), say("assistant", "A key."),
    tools=('{"name": "look"}',),
)  # fmt: skip


def test_calls_and_answers_of_tools_stay_with_their_question(chatml_tokenizer: SFTTokenizer) -> None:
    encode = tracer(chatml_tokenizer, FORMATTERS["openai"])
    last_exchange = Conversation((AGENT.messages[0], *AGENT.messages[5:]), AGENT.tools)
    num_last = len(encode(last_exchange).encoded.tokens_T)
    for policy in SHORTENED:
        kept = cut(AGENT, chatml_tokenizer, policy, num_last)
        assert np.array_equal(kept.sequences[-1].tokens_T, encode(last_exchange).encoded.tokens_T)
        assert "# Tools" in chatml_tokenizer.decode(kept.sequences[-1].tokens_T)
    assert cut(AGENT, chatml_tokenizer, "keep_last_turns", num_last - 1) == TruncatedConversation((), 5)
    # The last turn does not fit with its own exchange, and less than that is no legal history; the others do.
    windows = cut(AGENT, chatml_tokenizer, "window", num_last - 1)
    assert (trained_turns(windows), windows.num_untrained_turns) == ([[2, 4], [6, 8]], 1)


def test_of_several_questions_in_a_row_the_last_is_kept_if_all_do_not_fit(chatml_tokenizer: SFTTokenizer) -> None:
    asked = talk(say("system", "S"), say("user", "long " * 60), say("user", "short?"), say("assistant", "yes"))
    for policy in SHORTENED:
        kept = cut(asked, chatml_tokenizer, policy, 30)
        assert trained_turns(kept) == [[3]]
        text = chatml_tokenizer.decode(kept.sequences[0].tokens_T)
        assert text.startswith("<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nshort?")


def test_a_system_message_in_the_middle_stays_in_front_of_its_question(chatml_tokenizer: SFTTokenizer) -> None:
    changed = talk(*LONG.messages[:-2], say("system", "Shout."), *LONG.messages[-2:])
    kept = cut(changed, chatml_tokenizer, "keep_last_turns", 50)
    text = chatml_tokenizer.decode(kept.sequences[0].tokens_T)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>system\nShout.<|im_end|>\n")
    assert trained_turns(kept) == [[13]]


def test_an_answer_that_is_too_long_for_any_sequence_is_counted_and_the_others_are_trained(
    chatml_tokenizer: SFTTokenizer,
) -> None:
    essay = talk(*LONG.messages[:5], say("user", "More!"), say("assistant", "more " * 90), *LONG.messages[5:])
    windows = cut(essay, chatml_tokenizer, "window", 60)
    assert windows.num_untrained_turns == 1
    assert sorted(turn for turns in trained_turns(windows) for turn in turns) == [2, 4, 8, 10, 12, 14]
    assert cut(essay, chatml_tokenizer, "right", 60).num_untrained_turns == 5


def test_a_format_that_refuses_what_is_left_trains_less_and_says_so(chatml_tokenizer: SFTTokenizer) -> None:
    # Behind the two answers in a row no run can begin that is accepted, but the beginning of the conversation is.
    calls = 0
    openai = tracer(chatml_tokenizer, FORMATTERS["openai"])

    def only_from_alpha(conversation: Conversation) -> TracedConversation:
        nonlocal calls
        calls += 1
        if "alpha" not in conversation.messages[1].content:
            raise RenderError("refused", reason="template")
        return openai(conversation)

    traced = openai(LONG)
    first_four = len(openai(talk(*LONG.messages[:9])).encoded.tokens_T)
    windows = truncate(traced, policy="window", max_tokens=first_four, encode=only_from_alpha)
    assert (trained_turns(windows), windows.num_untrained_turns) == ([[2, 4, 6, 8]], 2)
    last = truncate(traced, policy="keep_last_turns", max_tokens=first_four, encode=only_from_alpha)
    assert last == TruncatedConversation((), 6)
    assert calls < 30


def test_a_run_may_begin_earlier_where_the_format_wants_that(chatml_tokenizer: SFTTokenizer) -> None:
    openai = tracer(chatml_tokenizer, FORMATTERS["openai"])

    def not_from_gamma(conversation: Conversation) -> TracedConversation:
        if "gamma" in conversation.messages[1].content:
            raise RenderError("refused", reason="template")
        return openai(conversation)

    silent = [Message(m.role, m.content, weight=0.0) for m in LONG.messages]
    from_gamma = talk(*silent[:5], *LONG.messages[5:7], *silent[7:])
    max_tokens = len(openai(talk(*LONG.messages[:7])).encoded.tokens_T)
    kept = truncate(openai(from_gamma), policy="window", max_tokens=max_tokens, encode=not_from_gamma)
    assert trained_turns(kept) == [[6]]
    assert "Say alpha!" in chatml_tokenizer.decode(kept.sequences[0].tokens_T)


def test_a_format_that_refuses_everything_is_not_asked_for_every_run(chatml_tokenizer: SFTTokenizer) -> None:
    calls = 0

    def refuse(conversation: Conversation) -> TracedConversation:
        nonlocal calls
        calls += 1
        raise RenderError("refused", reason="template")

    turns = [say("user", f"What is {i}?") if i % 2 == 0 else say("assistant", f"It is {i}!") for i in range(120)]
    whole = tracer(chatml_tokenizer, FORMATTERS["openai"])(talk(*turns))
    max_tokens = len(whole.encoded.tokens_T) - 1
    assert truncate(whole, policy="window", max_tokens=max_tokens, encode=refuse) == TruncatedConversation((), 60)
    assert calls < 60 * 14


def test_all_system_messages_at_the_beginning_stay(chatml_tokenizer: SFTTokenizer) -> None:
    two = talk(say("system", "First."), say("system", "Second."), *LONG.messages[1:])
    for policy in SHORTENED:
        kept = cut(two, chatml_tokenizer, policy, 90)
        assert kept.sequences
        for sequence in kept.sequences:
            text = chatml_tokenizer.decode(sequence.tokens_T)
            assert text.startswith("<|im_start|>system\nFirst.<|im_end|>\n<|im_start|>system\nSecond.<|im_end|>\n")


def test_a_question_between_a_call_and_its_answer_begins_no_run(chatml_tokenizer: SFTTokenizer) -> None:
    answer = Message("tool", "a wall", tool_call_id="c")
    hurried = talk(say("user", "long " * 40), CALL, say("user", "So?"), answer, say("assistant", "A wall."))
    encode = tracer(chatml_tokenizer, FORMATTERS["openai"])
    orphan = talk(*hurried.messages[2:])
    for policy in SHORTENED:
        kept = cut(hurried, chatml_tokenizer, policy, len(encode(orphan).encoded.tokens_T))
        assert kept == TruncatedConversation((), 2)


def test_answers_that_follow_each_other_are_trained_once_each(chatml_tokenizer: SFTTokenizer) -> None:
    chatty = talk(say("user", "Go!"), *(say("assistant", f"{word} " * 9) for word in ("one", "two", "three")))
    encode = tracer(chatml_tokenizer, FORMATTERS["openai"])
    whole = encode(chatty)
    for first in (1, 2):
        max_tokens = len(encode(talk(*chatty.messages[: first + 1])).encoded.tokens_T)
        kept = truncate(whole, policy="window", max_tokens=max_tokens, encode=encode)
        assert trained_turns(kept) == [list(range(1, first + 1))]
        assert kept.num_untrained_turns == 3 - first


def test_a_turn_without_tokens_has_no_targets() -> None:
    encoded = EncodedConversation(
        np.arange(4), np.array([[0, 1], [2, 2], [2, 3]]), np.array([0, 1, 3]), np.zeros(3, dtype=bool),
        np.ones(3, dtype=np.float32), origin="a:1",
    )  # fmt: skip
    assert turns_with_targets(encoded).tolist() == [3]


def test_the_system_message_of_the_first_user_message_moves_to_the_first_that_is_kept(
    chatml_tokenizer: SFTTokenizer,
) -> None:
    for policy in SHORTENED:
        kept = cut(LONG, chatml_tokenizer, policy, 50, formatter="folded")
        assert len(trained_turns(kept)) == (1 if policy == "keep_last_turns" else 3)
        for sequence in kept.sequences:
            assert chatml_tokenizer.decode(sequence.tokens_T).startswith("<|im_start|><<Be brief.>>Say ")


def test_few_conversations_are_rendered_for_many_windows(chatml_tokenizer: SFTTokenizer) -> None:
    turns = [say("user", f"What is {i}?") if i % 2 == 0 else say("assistant", f"It is {i}!") for i in range(400)]
    num_encoded = 0
    openai = tracer(chatml_tokenizer, FORMATTERS["openai"])

    def counting(conversation: Conversation) -> TracedConversation:
        nonlocal num_encoded
        num_encoded += 1
        return openai(conversation)

    windows = truncate(openai(talk(*turns)), policy="window", max_tokens=200, encode=counting)
    assert windows.num_untrained_turns == 0
    assert len(windows.sequences) > 10
    assert num_encoded <= 2 * len(windows.sequences)


def test_a_conversation_that_fits_stays_as_it_is(chatml_tokenizer: SFTTokenizer) -> None:
    encode = tracer(chatml_tokenizer, FORMATTERS["openai"])
    traced = encode(LONG)
    for policy in POLICIES:
        kept = truncate(traced, policy=policy, max_tokens=len(traced.encoded.tokens_T), encode=encode)
        assert kept.sequences[0] is traced.encoded


@pytest.mark.parametrize("policy", ["error", "drop"])
def test_policies_that_keep_nothing_are_refused(
    policy: Literal["error", "drop"], chatml_tokenizer: SFTTokenizer
) -> None:
    encode = tracer(chatml_tokenizer, FORMATTERS["openai"])
    with pytest.raises(ValueError, match=f"policy is '{policy}', which keeps nothing of a long conversation"):
        truncate(encode(LONG), policy=policy, max_tokens=9, encode=encode)


weights = st.sampled_from([None, None, None, 0.0, 0.5])
answers = st.builds(lambda text, weight: Message("assistant", text, weight=weight), texts, weights)
calling = st.builds(lambda text: Message("assistant", text, tool_calls=CALL.tool_calls), texts)
questions = texts.map(lambda text: Message("user", text))
others = st.one_of(questions, texts.map(lambda t: Message("tool", t)), texts.map(lambda t: Message("system", t)))
any_order = st.builds(
    lambda head, messages, last: [*head, *messages, last],
    st.lists(texts.map(lambda t: Message("system", t)), max_size=2),
    st.lists(st.one_of(questions, answers, answers, calling, others), max_size=14),
    answers,
)
in_turn = st.builds(
    lambda head, pairs, last: [*head, *(m for pair in pairs for m in pair), *last],
    st.lists(texts.map(lambda t: Message("system", t)), max_size=1),
    st.lists(st.tuples(questions, answers), min_size=1, max_size=8),
    st.lists(questions, max_size=1),
)
thinking = in_turn.map(
    lambda messages: [
        Message("assistant", m.content, reasoning="so " * (i % 7) or None, weight=m.weight)
        if m.role == "assistant"
        else m
        for i, m in enumerate(messages)
    ]
)
plain_order = any_order.map(
    lambda ms: [Message("assistant", m.content, weight=m.weight) if m.tool_calls else m for m in ms if m.role != "tool"]
)
CHATS = {"openai": any_order | in_turn, "llama3": plain_order | in_turn, "folded": in_turn, "thinking": thinking}


def content_of(message: Message, formatter: str) -> list[str]:
    """What the format may write for an answer."""
    if formatter == "openai":
        return [assistant_text(message)]
    if formatter == "llama3":
        return [message.content.strip()]
    thought = [f"<think>{message.reasoning}</think>{message.content}"] if message.reasoning else []
    return [message.content, *thought] if formatter == "thinking" else [message.content]


def check_supervised_text(
    sequence: EncodedConversation, conversation: Conversation, tokenizer: SFTTokenizer, *, formatter: str
) -> None:
    """Law 1: what is trained of a turn is its content and its end of turn."""
    inside = np.zeros(len(sequence.tokens_T), dtype=bool)
    for turn in turns_with_targets(sequence).tolist():
        of_turn = sequence.turns_K == turn
        message = conversation.messages[turn]
        assert message.role == "assistant"
        assert (sequence.weights_K[of_turn] == (1.0 if message.weight is None else message.weight)).all()
        content = ""
        for (first, last), is_end in zip(sequence.token_spans_K2[of_turn], sequence.is_end_K[of_turn], strict=True):
            text = decode_behind(tokenizer, sequence.tokens_T, first, last)
            if is_end:
                assert text in {"<|im_end|>", "<|eot_id|>", "<|endoftext|>"}
            else:
                content += text
            inside[first:last] = True
        assert sequence.is_end_K[of_turn].any()
        assert content in content_of(message, formatter)
    assert np.array_equal(sequence.weights_T > 0, inside)


@pytest.mark.parametrize("formatter", list(FORMATTERS))
@quick
@given(data=st.data(), policy=st.sampled_from(POLICIES), last=st.booleans())
def test_what_is_kept_fits_is_exact_and_adds_up(
    formatter: str,
    data: st.DataObject,
    policy: Shortening,
    last: bool,
    chatml_tokenizer: SFTTokenizer,
) -> None:
    messages = data.draw(CHATS[formatter])
    tools = ('{"name": "look"}',) if formatter == "openai" and data.draw(st.booleans()) else ()
    conversation = Conversation(tuple(messages), tools)
    encode = tracer(chatml_tokenizer, FORMATTERS[formatter], supervise_turns="last" if last else "all")
    traced = encode(conversation)
    whole = traced.encoded
    max_tokens = data.draw(st.integers(1, len(whole.tokens_T)))
    kept = truncate(traced, policy=policy, max_tokens=max_tokens, encode=encode)
    trained = turns_with_targets(whole).tolist()
    found = [turn for sequence in kept.sequences for turn in turns_with_targets(sequence).tolist()]
    assert len(set(found)) == len(found), "no turn is trained twice"
    assert set(found) <= set(trained)
    assert len(found) + kept.num_untrained_turns == len(trained)
    assert found == sorted(found)
    for sequence in kept.sequences:
        assert len(sequence.tokens_T) <= max_tokens
        assert sequence.num_targets > 0
        check_supervised_text(sequence, conversation, chatml_tokenizer, formatter=formatter)
        if sequence.is_truncated:
            text = chatml_tokenizer.decode(sequence.tokens_T).rstrip("\n")
            assert text.endswith(("<|im_end|>", "<|eot_id|>", "<|endoftext|>")), "no header and no half of a turn"
    if policy == "right" and kept.sequences:
        assert np.array_equal(kept.sequences[0].tokens_T, whole.tokens_T[: len(kept.sequences[0].tokens_T)])
    if policy == "keep_last_turns" and found:
        assert found[-1] == trained[-1]
    if policy in SHORTENED and len(whole.tokens_T) > max_tokens:
        check_runs(kept, conversation, encode)


def check_runs(
    kept: TruncatedConversation, conversation: Conversation, encode: Callable[[Conversation], TracedConversation]
) -> None:
    """Each sequence is what the format writes for the system messages and a run that begins with a question."""
    messages = conversation.messages
    first = next(i for i, m in enumerate(messages) if m.role != "system")
    for sequence in kept.sequences:
        end = int(turns_with_targets(sequence)[-1]) + 1
        starts = [
            start
            for start in range(first, end)
            if start == first
            or messages[start].role == "user"
            or (messages[start].role == "system" and messages[start - 1].role != "user")
        ]
        equal = [
            start
            for start in starts
            if np.array_equal(
                encode(Conversation((*messages[:first], *messages[start:end]), conversation.tools)).encoded.tokens_T,
                sequence.tokens_T,
            )
        ]
        assert equal, "no run of whole messages"
        spoken = next((m.role for m in messages[equal[0] : end] if m.role in {"assistant", "tool"}), "")
        assert equal[0] == first or spoken == "assistant", "no answer of a tool without its call"


@quick
@given(messages=in_turn, data=st.data())
def test_a_window_leaves_out_only_turns_that_do_not_fit_with_their_question(
    messages: list[Message], data: st.DataObject, chatml_tokenizer: SFTTokenizer
) -> None:
    conversation = Conversation(tuple(messages))
    encode = tracer(chatml_tokenizer, FORMATTERS["openai"])
    traced = encode(conversation)
    max_tokens = data.draw(st.integers(1, len(traced.encoded.tokens_T)))
    kept = truncate(traced, policy="window", max_tokens=max_tokens, encode=encode)
    head = messages[:1] if messages[0].role == "system" else []
    found = {turn for turns in trained_turns(kept) for turn in turns}
    for turn in turns_with_targets(traced.encoded).tolist():
        least = Conversation((*head, *messages[turn - 1 : turn + 1]))
        assert (turn in found) == (len(encode(least).encoded.tokens_T) <= max_tokens)
    # Each window ends as late as possible, and then begins as early as possible.
    for sequence, after in zip_longest(kept.sequences, kept.sequences[1:]):
        turns = sorted(set(sequence.turns_K.tolist()))
        own = turns_with_targets(sequence).tolist()
        if turns[0] > len(head) + 1:
            longer = Conversation((*head, *messages[turns[0] - 3 : own[-1] + 1]))
            assert len(encode(longer).encoded.tokens_T) > max_tokens
        if after is not None:
            later = int(turns_with_targets(after)[0])
            longer = Conversation((*head, *messages[own[0] - 1 : later + 1]))
            assert len(encode(longer).encoded.tokens_T) > max_tokens


@pytest.mark.parametrize("name", ["metaspace first", "sentencepiece bpe, ChatML as control symbols"])
@quick
@given(messages=in_turn, data=st.data(), policy=st.sampled_from(POLICIES))
def test_bos_and_eos_count_and_stand_at_the_ends(
    name: str,
    messages: list[Message],
    data: st.DataObject,
    policy: Shortening,
    lossless_tokenizers: dict[str, SFTTokenizer],
) -> None:
    tokenizer = lossless_tokenizers[name]
    has_bos = tokenizer.bos_id is not None
    encode = tracer(tokenizer, FORMATTERS["openai"], add_bos=has_bos, add_eos=tokenizer.eos_id is not None)
    traced = encode(Conversation(tuple(messages)))
    max_tokens = data.draw(st.integers(1, len(traced.encoded.tokens_T)))
    kept = truncate(traced, policy=policy, max_tokens=max_tokens, encode=encode)
    for sequence in kept.sequences:
        assert len(sequence.tokens_T) <= max_tokens
        assert not has_bos or sequence.tokens_T[0] == tokenizer.bos_id
        if policy in SHORTENED and tokenizer.eos_id is not None:
            assert sequence.tokens_T[-1] == tokenizer.eos_id
            assert sequence.weights_T[-1] == 0
