# SPDX-License-Identifier: Apache-2.0
"""One conversation to tokens and targets: what is supervised, and what is not."""

import re

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from primus.chat import Conversation, Message
from primus.errors import RenderError, TokenizerError
from primus.sft.encoding import EncodedConversation, encode_conversation
from primus.sft.formatters import OpenAIMessagesFormatter, create_formatter
from primus.sft.masking import next_token_targets, token_spans
from primus.sft.tokenizer import SFTTokenizer, load_tokenizer
from primus.sft.truncation import truncate_right

TWO_TURNS = Conversation(
    (
        Message("system", "Be brief."),
        Message("user", "Hello"),
        Message("assistant", "Hi."),
        Message("user", "Bye"),
        Message("assistant", "See you!"),
    )
)


def encode(
    conversation: Conversation, tokenizer: SFTTokenizer, *, supervise_end_of_turn: bool = True, **options: object
) -> EncodedConversation:
    return encode_conversation(
        conversation,
        formatter=OpenAIMessagesFormatter(),
        tokenizer=tokenizer,
        supervise_end_of_turn=supervise_end_of_turn,
        **options,  # type: ignore[arg-type]
    )


def trained(encoded: EncodedConversation, tokenizer: SFTTokenizer) -> list[str]:
    """The text of each token that is a target."""
    targets = next_token_targets(encoded.tokens_T, encoded.weights_T, length=len(encoded.tokens_T), pad_id=0)
    return [tokenizer.decode([int(i)]) for i in targets.labels_S[targets.loss_mask_S > 0]]


def test_every_assistant_turn_is_trained_with_its_end_token(chatml_tokenizer: SFTTokenizer) -> None:
    assert "".join(trained(encode(TWO_TURNS, chatml_tokenizer), chatml_tokenizer)) == "Hi.<|im_end|>See you!<|im_end|>"


def test_without_supervision_of_the_end_only_the_content_is_trained(chatml_tokenizer: SFTTokenizer) -> None:
    encoded = encode(TWO_TURNS, chatml_tokenizer, supervise_end_of_turn=False)
    assert "".join(trained(encoded, chatml_tokenizer)) == "Hi.See you!"
    assert np.array_equal(encoded.tokens_T, encode(TWO_TURNS, chatml_tokenizer).tokens_T)


def test_only_the_last_turn_is_trained_when_asked(chatml_tokenizer: SFTTokenizer) -> None:
    encoded = encode(TWO_TURNS, chatml_tokenizer, supervise_turns="last")
    assert "".join(trained(encoded, chatml_tokenizer)) == "See you!<|im_end|>"


def test_the_weight_of_a_message_is_the_weight_of_its_content_and_its_end(chatml_tokenizer: SFTTokenizer) -> None:
    messages = (*TWO_TURNS.messages[:2], Message("assistant", "Hi.", weight=0.5), *TWO_TURNS.messages[3:])
    encoded = encode(Conversation(messages), chatml_tokenizer)
    assert encoded.weights_K.tolist() == [0.5, 0.5, 1.0, 1.0]
    silent = (*TWO_TURNS.messages[:2], Message("assistant", "Hi.", weight=0), *TWO_TURNS.messages[3:])
    assert "".join(trained(encode(Conversation(silent), chatml_tokenizer), chatml_tokenizer)) == "See you!<|im_end|>"


def test_the_mask_of_the_assistant_does_not_depend_on_weights(chatml_tokenizer: SFTTokenizer) -> None:
    silent = tuple(Message(m.role, m.content, weight=0) for m in TWO_TURNS.messages)
    encoded = encode(Conversation(silent), chatml_tokenizer)
    assert encoded.num_targets == 0
    assert encoded.assistant_mask_T.sum() == encode(TWO_TURNS, chatml_tokenizer).assistant_mask_T.sum() > 0


def test_a_newline_that_begins_an_answer_is_not_merged_with_the_header(chatml_tokenizer: SFTTokenizer) -> None:
    conversation = Conversation((Message("user", "x"), Message("assistant", "\n\nindented")))
    encoded = encode(conversation, chatml_tokenizer)
    rendered = OpenAIMessagesFormatter().render(conversation)
    whole = chatml_tokenizer.encode(rendered.text, markers=rendered.markers)
    assert encoded.num_splits == 1
    assert len(encoded.tokens_T) == len(whole.ids_T) + 1, "the two newlines and the header's were one token"
    assert "".join(trained(encoded, chatml_tokenizer)) == "\n\nindented<|im_end|>"


def test_bos_and_eos_stand_at_the_ends_and_are_never_trained(shared_bos_tokenizer: SFTTokenizer) -> None:
    encoded = encode(TWO_TURNS, shared_bos_tokenizer, add_bos=True, add_eos=True)
    assert encoded.tokens_T[0] == shared_bos_tokenizer.bos_id
    assert encoded.tokens_T[-1] == shared_bos_tokenizer.eos_id
    assert encoded.weights_T[0] == encoded.weights_T[-1] == 0
    plain = encode(TWO_TURNS, shared_bos_tokenizer, add_bos=False)
    assert np.array_equal(encoded.tokens_T[1:-1], plain.tokens_T)
    assert np.array_equal(encoded.weights_T[1:-1], plain.weights_T)


@pytest.fixture
def shared_bos_tokenizer(lossless_tokenizers: dict[str, SFTTokenizer]) -> SFTTokenizer:
    return lossless_tokenizers["sentencepiece bpe, ChatML as control symbols"]


def test_bos_is_refused_where_there_is_none(chatml_tokenizer: SFTTokenizer) -> None:
    with pytest.raises(TokenizerError, match=r"has no BOS token, but sft_add_bos is on; turn it off"):
        encode(TWO_TURNS, chatml_tokenizer, add_bos=True)


def test_the_first_token_of_a_text_can_not_be_a_target() -> None:
    """Nothing predicts it; an alpaca-like format without a prompt would ask for it."""
    encoded = EncodedConversation(
        np.arange(3), np.array([[0, 2]]), np.array([0]), np.array([False]), np.ones(1, dtype=np.float32), origin="x"
    )
    assert encoded.num_targets == 1
    targets = next_token_targets(encoded.tokens_T, encoded.weights_T, length=4, pad_id=0)
    assert int((targets.loss_mask_S > 0).sum()) == encoded.num_targets


def test_a_target_that_equals_the_pad_id_stays_a_target() -> None:
    targets = next_token_targets(np.array([5, 0, 0]), np.array([0, 1, 1], dtype=np.float32), length=5, pad_id=0)
    assert targets.loss_mask_S.tolist() == [1, 1, 0, 0, 0]


def test_targets_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="4 tokens and 4 weights do not fit a sequence of 2 positions"):
        next_token_targets(np.arange(4), np.ones(4, dtype=np.float32), length=2, pad_id=0)


def test_a_token_across_the_edge_of_a_span_has_no_mask(chatml_tokenizer: SFTTokenizer) -> None:
    rendered = OpenAIMessagesFormatter().render(Conversation((Message("assistant", "\n\nx"),)))
    encoding = chatml_tokenizer.encode(rendered.text, markers=rendered.markers)
    with pytest.raises(TokenizerError, match="turn 0: a token crosses the edge of a span at character 22"):
        token_spans(encoding.offsets_T2, rendered.spans)


def test_alpaca_trains_the_response_and_the_tokenizers_eos(
    chatml_tokenizer: SFTTokenizer, tokenizer_folder: object
) -> None:
    conversation = Conversation((Message("user", "Name a fruit"), Message("assistant", "An apple")))
    encoded = encode_conversation(
        conversation,
        formatter=create_formatter("alpaca", eos_token="<|im_end|>"),
        tokenizer=chatml_tokenizer,
        supervise_end_of_turn=True,
    )
    assert "".join(trained(encoded, chatml_tokenizer)) == "An apple<|im_end|>"


def test_alpaca_refuses_a_second_turn(chatml_tokenizer: SFTTokenizer) -> None:
    with pytest.raises(RenderError, match=r"<memory>: the alpaca format has one user and one assistant turn"):
        create_formatter("alpaca").render(TWO_TURNS)


def test_truncation_keeps_a_turn_that_ends_where_the_sequence_does(chatml_tokenizer: SFTTokenizer) -> None:
    whole = encode(TWO_TURNS, chatml_tokenizer)
    end_of_first_turn = int(whole.token_spans_K2[1, 1])
    kept = truncate_right(whole, max_tokens=end_of_first_turn)
    assert "".join(trained(kept, chatml_tokenizer)) == "Hi.<|im_end|>"
    assert kept.num_untrained_turns == 1
    cut = truncate_right(whole, max_tokens=end_of_first_turn - 1)
    assert cut.num_targets == 0, "a turn without its end would teach the model to break off"
    assert cut.num_untrained_turns == 2
    assert truncate_right(whole, max_tokens=len(whole.tokens_T)) is whole


def test_every_length_of_truncation_trains_whole_turns_only(chatml_tokenizer: SFTTokenizer) -> None:
    whole = encode(TWO_TURNS, chatml_tokenizer)
    for length in range(1, len(whole.tokens_T) + 1):
        text = "".join(trained(truncate_right(whole, max_tokens=length), chatml_tokenizer))
        assert text in {"", "Hi.<|im_end|>", "Hi.<|im_end|>See you!<|im_end|>"}


def test_a_word_vocabulary_that_knows_nothing_of_the_text_still_has_exact_spans() -> None:
    vocab = {"[UNK]": 0, "Hi": 1, "assistant": 2, "<|im_start|>": 3, "<|im_end|>": 4}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["[UNK]", "<|im_start|>", "<|im_end|>"])
    loaded = load_tokenizer(tokenizer)
    encoded = encode(Conversation((Message("user", "Q [UNK]"), Message("assistant", "Hi stranger"))), loaded)
    assert re.sub(r"\s", "", "".join(trained(encoded, loaded))) == "Hi[UNK]<|im_end|>"
