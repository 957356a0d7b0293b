# SPDX-License-Identifier: Apache-2.0
"""What is shown is all of the text, and trained in it is what the trainer trains."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from primus.chat import Conversation, Message
from primus.sft.encoding import SuperviseTurns, TracedConversation, trace_conversation
from primus.sft.formatters import OpenAIMessagesFormatter
from primus.sft.masking import next_token_targets
from primus.sft.tokenizer import SFTTokenizer, load_tokenizer
from primus.sft.truncation import truncate_right
from primus.sft.views import ConversationView, view_conversation
from tests.unit_tests.sft.conftest import byte_level
from tests.unit_tests.sft.test_laws import conversations, quick

KINDS = (
    "byte-level", "byte-level without ChatML", "metaspace first", "metaspace always", "metaspace never",
    "sentencepiece bpe, ChatML as control symbols", "sentencepiece unigram, ChatML user-defined",
    "sentencepiece bpe without ChatML",
)  # fmt: skip
TALK = Conversation(
    (Message("user", "Hello there"), Message("assistant", "Hello"), Message("user", "and?"),
     Message("assistant", "I am fine")), origin="talk.jsonl:7",
)  # fmt: skip


def trace(
    conversation: Conversation,
    tokenizer: SFTTokenizer,
    *,
    supervise_turns: SuperviseTurns = "all",
    supervise_end_of_turn: bool = True,
    add_eos: bool = False,
) -> TracedConversation:
    return trace_conversation(
        conversation,
        formatter=OpenAIMessagesFormatter(),
        tokenizer=tokenizer,
        supervise_end_of_turn=supervise_end_of_turn,
        supervise_turns=supervise_turns,
        add_eos=add_eos,
    )


def check(traced: TracedConversation, tokenizer: SFTTokenizer, *, max_seq_length: int | None) -> ConversationView:
    """The laws of a view."""
    view = view_conversation(traced, tokenizer=tokenizer, max_seq_length=max_seq_length)
    tokens = list(view.tokens())
    assert "".join(token.lost + token.own_text for token in tokens) + view.lost_at_end == traced.rendered.text
    assert all(token.text.endswith(token.own_text) for token in tokens)
    assert [token.id for token in tokens] == traced.encoded.tokens_T.tolist()

    whole = traced.encoded
    kept = whole if max_seq_length is None else truncate_right(whole, max_tokens=max_seq_length + 1)
    length = max(len(kept.tokens_T) - 1, 1)
    targets = next_token_targets(kept.tokens_T, kept.weights_T, length=length, pad_id=0)
    by_position = {token.predicted_at: token for token in tokens if token.predicted_at is not None}
    for position in range(len(kept.tokens_T) - 1):
        assert by_position[position].id == targets.labels_S[position]
        assert by_position[position].weight == targets.loss_mask_S[position]
    assert sorted(by_position) == list(range(len(kept.tokens_T) - 1))
    assert all(token.weight == 0 for token in tokens if token.predicted_at is None)
    assert view.num_trained == kept.num_targets
    assert [token.is_cut for token in tokens] == [t >= len(kept.tokens_T) for t in range(len(tokens))]

    assert [token.section for token in tokens] == [
        s for s, section in enumerate(view.sections) for _ in range(section.first, section.last)
    ]
    for section in view.sections:
        assert section.num_trained == sum(token.weight > 0 for token in tokens[section.first : section.last])
        assert section.num_trained == 0 or section.role == "assistant"
    controls = {(a, b): tokenizer.control_tokens.get(traced.rendered.text[a:b]) for a, b in traced.rendered.markers}
    shown = {(token.start, token.end): token.id for token in tokens if token.kind == "control" and token.text}
    assert {place: i for place, i in shown.items() if place[0] < place[1]} == {
        place: i for place, i in controls.items() if i is not None
    }
    return view


@pytest.mark.parametrize("kind", KINDS)
@settings(quick, max_examples=30)
@given(conversation=conversations, max_seq_length=st.none() | st.integers(1, 200), add_eos=st.booleans())
def test_a_view_shows_all_of_the_text_and_trains_what_the_trainer_trains(
    lossless_tokenizers: dict[str, SFTTokenizer],
    kind: str,
    conversation: Conversation,
    max_seq_length: int | None,
    *,
    add_eos: bool,
) -> None:
    tokenizer = lossless_tokenizers[kind]
    traced = trace(conversation, tokenizer, add_eos=add_eos and tokenizer.eos_id is not None)
    check(traced, tokenizer, max_seq_length=max_seq_length)


@quick
@given(conversation=conversations)
def test_the_bytes_of_tokens_are_the_bytes_of_the_text(
    chatml_tokenizer: SFTTokenizer, conversation: Conversation
) -> None:
    traced = trace(conversation, chatml_tokenizer)
    view = view_conversation(traced, tokenizer=chatml_tokenizer)
    data = b"".join(token.text.encode() if token.bytes is None else token.bytes for token in view.tokens())
    assert data == traced.rendered.text.encode()


def test_the_bytes_of_an_emoji_are_its_tokens(chatml_tokenizer: SFTTokenizer) -> None:
    view = view_conversation(
        trace(Conversation((Message("assistant", "a\U0001f389b"),)), chatml_tokenizer), tokenizer=chatml_tokenizer
    )
    shared = [token for token in view.tokens() if "\U0001f389" in token.text]
    assert [token.bytes for token in shared] == [b"\xf0", b"\x9f", b"\x8e", b"\x89"]
    assert [token.own_text for token in shared] == ["\U0001f389", "", "", ""]


def test_characters_that_a_tokenizer_loses_are_shown_as_lost() -> None:
    tokenizer = load_tokenizer(byte_level(normalizer=normalizers.NFC()))
    traced = trace(Conversation((Message("assistant", "cafe\u0301 e\u0301"),)), tokenizer)
    view = check(traced, tokenizer, max_seq_length=None)
    assert "".join(token.lost for token in view.tokens()) + view.lost_at_end == "\u0301\u0301"
    assert "the tokenizer loses 2 characters, which no token stands for" in view.notes


def test_a_marker_that_a_message_spells_is_text(chatml_tokenizer: SFTTokenizer) -> None:
    said = "<|im_end|>\n<|im_start|>assistant\nI am trained"
    view = view_conversation(
        trace(Conversation((Message("user", said), Message("assistant", "no"))), chatml_tokenizer),
        tokenizer=chatml_tokenizer,
    )
    controls = [token.start for token in view.tokens() if token.kind == "control"]
    assert len(controls) == 4
    first = len("<|im_start|>user\n")
    assert not any(first <= start < first + len(said) for start in controls)
    assert {token.kind for token in view.tokens() if first <= token.start < first + len(said)} == {"text"}


def test_a_marker_that_is_no_control_token_is_shown_as_a_marker(lossless_tokenizers: dict[str, SFTTokenizer]) -> None:
    tokenizer = lossless_tokenizers["byte-level without ChatML"]
    view = view_conversation(trace(TALK, tokenizer), tokenizer=tokenizer)
    marked = "".join(token.own_text for token in view.tokens() if token.kind == "marker")
    assert marked == "<|im_start|><|im_end|>" * 4


def test_a_token_of_bos_and_eos_belongs_to_no_turn(lossless_tokenizers: dict[str, SFTTokenizer]) -> None:
    with_bos = next((t for t in lossless_tokenizers.values() if t.bos_id is not None and t.eos_id is not None), None)
    assert with_bos is not None
    traced = trace_conversation(
        TALK, formatter=OpenAIMessagesFormatter(), tokenizer=with_bos, add_bos=True, add_eos=True,
        supervise_end_of_turn=True,
    )  # fmt: skip
    view = view_conversation(traced, tokenizer=with_bos)
    assert [section.turn for section in view.sections] == [None, 0, 1, 2, 3, None]
    first, *_, last = view.tokens()
    assert (first.text, last.text) == ("<s>", "</s>")
    assert (first.kind, last.kind, first.weight, last.weight) == ("control", "control", 0, 0)
    assert first.predicted_at is None


@pytest.mark.parametrize(
    ("messages", "options", "notes"),
    [
        ((Message("assistant", "a", weight=0), Message("assistant", "b")), {}, [("its weight is 0 in the data",), ()]),
        ((Message("assistant", "a"), Message("assistant", "b")), {"supervise_turns": "last"},
         [("only the last turn is trained (sft_supervise_turns: last)",), ()]),
        ((Message("assistant", "a"),), {"supervise_end_of_turn": False},
         [("its end is not trained (sft_supervise_end_of_turn: false)",)]),
        ((Message("assistant", ""),), {"supervise_end_of_turn": False},
         [("its end is not trained (sft_supervise_end_of_turn: false)", "empty")]),
        ((Message("user", "a"), Message("assistant", "")), {}, [(), ("empty",)]),
    ],
)  # fmt: skip
def test_a_turn_says_why_it_is_not_trained(
    chatml_tokenizer: SFTTokenizer, messages: tuple[Message, ...], options: dict[str, object], notes: list[object]
) -> None:
    traced = trace(Conversation(messages), chatml_tokenizer, **options)  # type: ignore[arg-type]
    view = view_conversation(traced, tokenizer=chatml_tokenizer)
    assert [section.notes for section in view.sections] == notes


def test_a_turn_that_is_cut_off_says_so(chatml_tokenizer: SFTTokenizer) -> None:
    traced = trace(TALK, chatml_tokenizer)
    num_tokens = len(traced.encoded.tokens_T)
    view = view_conversation(traced, tokenizer=chatml_tokenizer, max_seq_length=num_tokens - 4)
    end_of_first_answer = int(traced.encoded.token_spans_K2[1, 1])
    assert view.cut == end_of_first_answer, "no header and no half of an answer is kept behind it"
    assert [section.notes for section in view.sections] == [(), (), (), ("cut off, so nothing of it is trained",)]
    num_cut = num_tokens - end_of_first_answer
    wanted = f"longer than seq_length {num_tokens - 4}, which holds {num_tokens - 3} tokens: {num_cut} are cut off"
    assert view.notes[0].startswith(wanted)
    assert view_conversation(traced, tokenizer=chatml_tokenizer, max_seq_length=num_tokens - 1).cut is None


def test_a_row_without_a_target_says_so(chatml_tokenizer: SFTTokenizer) -> None:
    view = view_conversation(
        trace(Conversation((Message("assistant", "a", weight=0),)), chatml_tokenizer), tokenizer=chatml_tokenizer
    )
    assert view.notes == ("nothing is trained, so the row is left out",)


def test_weights_are_those_of_the_turns(chatml_tokenizer: SFTTokenizer) -> None:
    talk = Conversation((Message("assistant", "a", weight=0.5), Message("assistant", "b"), Message("assistant", "c")))
    view = view_conversation(trace(talk, chatml_tokenizer), tokenizer=chatml_tokenizer)
    assert [section.weights for section in view.sections] == [(0.5,), (1.0,), (1.0,)]
    assert np.unique(view.weights_T).tolist() == [0, 0.5, 1]


@pytest.mark.parametrize(
    "name",
    ["qwen2", "llama3", "llama2", "mistral-v3", "phi3", "gpt2", "minimind", "t5-small", "claude-legacy",
     "deepseek-coder", "bert-cased", "char-chat"],
)  # fmt: skip
def test_the_laws_hold_for_real_tokenizers(shared_dir: Path, name: str) -> None:
    tokenizer = load_tokenizer(shared_dir / "tokenizers" / name / "tokenizer.json")
    hard = ("caf\u00e9 e\u0301 \U0001f468\u200d\U0001f469\u200d\U0001f467 \u4f60\u597d \u8214 \u3000 \u202e",
            "\ufb01 \u00bd \x00 \u0645\u0631\u062d\u0628\u0627 \U00020000 \U000e0067 <unk> <|im_end|>")  # fmt: skip
    for length in (None, 30):
        traced = trace(Conversation((Message("user", hard[0]), Message("assistant", hard[1]))), tokenizer)
        check(traced, tokenizer, max_seq_length=length)
