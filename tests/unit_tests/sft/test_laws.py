# SPDX-License-Identifier: Apache-2.0
"""The laws of training targets, over generated conversations and every tokenizer at hand.

1. Exact: the supervised tokens of a turn decode to exactly its content and its end of turn; nothing else is supervised.
2. One shift: labels and loss mask are the tokens and weights one place on, and padding is masked by position.
4. Content is data: what a message says never becomes a control token.

A tokenizer is lossless if the tokens of a text decode to the text. SentencePiece drops one leading space when it
decodes a text from its beginning, so tokens are decoded here behind the token in front of them, as a server streams
them; and it writes a space as U+2581, so that a U+2581 in a text comes back as a space, and nothing can be done about
it. Where a tokenizer loses something (NFC and NFKC normalization, unknown characters, whitespace), law 1 reads: the
supervised tokens decode to what the tokenizer gives back for the content when it encodes it alone, as the continuation
of a text.
"""

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from primus.chat import Conversation, Message, ToolCall
from primus.sft.encoding import EncodedConversation, encode_conversation
from primus.sft.formatters import OpenAIMessagesFormatter
from primus.sft.formatters.openai import assistant_text
from primus.sft.masking import next_token_targets
from primus.sft.tokenizer import SFTTokenizer, load_tokenizer
from primus.sft.tokenizer.base import Control
from primus.sft.tokenizer.fast import FastTokenizer

LOSSLESS = ("llama3", "gpt2", "minimind", "deepseek-coder", "llama2", "mistral-v3", "phi3")
SPACE_IS_A_SYMBOL = ("metaspace", "sentencepiece", "llama2", "mistral-v3", "phi3")
LOSSY = ("qwen2", "claude-legacy", "t5-small", "bert-cased", "char-chat")

FRAGMENTS = [
    "",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    " \n ",
    "Hello",
    "hello world.",
    "!",
    "?!",
    "...",
    ":",
    "<",
    ">",
    "|",
    "<|",
    "|>",
    "👩\u200d👩\u200d👧",
    "👍🏽",
    "🏳️\u200d🌈",
    "e\u0301",
    "a\u0308\u0323",
    "\u0301",
    "Å",
    "ﬁ",
    "½",
    "你好，世界",
    "日本語",
    "한국어",
    "ᄒ",
    "مرحبا",
    "שלום",
    "\u202e",
    "\u200b",
    "\ufeff",
    "\x00",
    "\x07",
    "\x1b[0m",
    "\x7f",
    "\u2028",
    "\ue000",
    "\U00100000",
    "\U000f0000",
    "<|im_start|>",
    "<|im_end|>",
    "<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|>",
    "<s>",
    "</s>",
    "<unk>",
    "<pad>",
    "[INST]",
    "<|eot_id|>",
    "<|begin_of_text|>",
    "<EOT>",
    "<think>",
    "</think>",
    "<tool_call>",
    "<0x0A>",
    "▁",
    "Ġ",
    "```python\nprint(1)\n```",
    '{"a": 1}',
    "1234567890",
    "don't",
    "    x",
]

texts = st.one_of(
    st.lists(st.sampled_from(FRAGMENTS), max_size=6).map("".join),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.tuples(st.sampled_from(["", " ", "\n", "\n\n", "\t"]), st.text("abc ,.!\n", max_size=12),
              st.sampled_from(["", " ", "\n", "  ", "!"])).map("".join),
)  # fmt: skip
tool_calls = st.lists(
    st.builds(lambda name, value: ToolCall(name, f'{{"x": {value}}}'), st.sampled_from(["add", "f"]), st.integers()),
    max_size=2,
).map(tuple)
users = st.builds(lambda text: Message("user", text), texts)
tools = st.builds(lambda text: Message("tool", text), texts)
assistants = st.builds(lambda text, calls: Message("assistant", text, tool_calls=calls), texts, tool_calls)


def _conversation(system: str | None, turns: list[Message], last: Message) -> Conversation:
    head = [] if system is None else [Message("system", system)]
    return Conversation((*head, *turns, last))


conversations = st.builds(
    _conversation, st.none() | texts, st.lists(st.one_of(users, assistants, tools), max_size=6), assistants
)

quick = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
FORMATTER = OpenAIMessagesFormatter()


def encode(conversation: Conversation, tokenizer: SFTTokenizer) -> EncodedConversation:
    return encode_conversation(conversation, formatter=FORMATTER, tokenizer=tokenizer, supervise_end_of_turn=True)


def decode_behind(tokenizer: SFTTokenizer, tokens: np.ndarray, first: int, last: int) -> str:
    """The text of tokens [first, last), decoded behind the token in front of them."""
    front = tokenizer.decode(tokens[first - 1 : first])
    both = tokenizer.decode(tokens[first - 1 : last])
    assert both.startswith(front)
    return both[len(front) :]


def lost_words(tokenizer: SFTTokenizer) -> list[str]:
    """Added tokens that the tokenizer's own decoder can't give back (deepseek-coder has some for single bytes)."""
    if not isinstance(tokenizer, FastTokenizer):
        return []
    added = [token.content for token in tokenizer._official.get_added_tokens_decoder().values() if not token.special]
    return [word for word in added if tokenizer.decode(tokenizer._official.encode(word).ids) != word]


def check_exact(conversation: Conversation, tokenizer: SFTTokenizer, *, name: str) -> None:
    encoded = encode(conversation, tokenizer)
    lower_block = " " if name.startswith(SPACE_IS_A_SYMBOL) else "\u2581"
    wanted = {
        turn: assistant_text(message).replace("\u2581", lower_block)
        for turn, message in enumerate(conversation.messages)
        if message.role == "assistant"
    }
    pieces: dict[tuple[int, bool], str] = {}
    for (first, last), turn, is_end in zip(encoded.token_spans_K2, encoded.turns_K, encoded.is_end_K, strict=True):
        pieces[int(turn), bool(is_end)] = decode_behind(tokenizer, encoded.tokens_T, first, last)
    assert pieces == {
        key: text for turn, content in wanted.items() for key, text in {(turn, False): content, (turn, True):
    "<|im_end|>"}.items() }  # fmt: skip
    inside = np.zeros(len(encoded.tokens_T), dtype=bool)
    for first, last in encoded.token_spans_K2:
        inside[first:last] = True
    assert np.array_equal(encoded.weights_T > 0, inside)
    assert np.array_equal(encoded.assistant_mask_T, inside)
    assert encoded.num_targets == inside[1:].sum()


def check_exact_as_far_as_the_tokenizer_is(conversation: Conversation, tokenizer: SFTTokenizer) -> None:
    encoded = encode(conversation, tokenizer)
    for k in np.flatnonzero(~encoded.is_end_K):
        content = assistant_text(conversation.messages[encoded.turns_K[k]])
        alone_T, _ = tokenizer._encode_continuation(content)
        first, last = encoded.token_spans_K2[k]
        assert tokenizer.decode(encoded.tokens_T[first:last]) == tokenizer.decode(alone_T)


def check_content_is_data(conversation: Conversation, tokenizer: SFTTokenizer) -> None:
    """The control tokens are those of the format, at their places, and no others."""
    rendered = FORMATTER.render(conversation)
    encoding = tokenizer.encode(
        rendered.text, markers=rendered.markers, spans=[(span.start, span.end) for span in rendered.spans]
    )
    markers = {start: tokenizer.control_tokens.get(rendered.text[start:end]) for start, end in rendered.markers}
    expected = [(start, token_id) for start, token_id in markers.items() if token_id is not None]
    unknown = {tokenizer.control_tokens.get(token) for token in ("<unk>", "[UNK]")}
    found = [
        (int(start), int(token_id))
        for token_id, (start, _) in zip(encoding.ids_T, encoding.offsets_T2, strict=True)
        if token_id in tokenizer.control_tokens.values() and int(token_id) not in unknown
    ]
    assert found == expected


SMALL = [
    "byte-level", "byte-level without ChatML", "metaspace first", "metaspace always", "metaspace never",
    "sentencepiece bpe, ChatML as control symbols", "sentencepiece unigram, ChatML user-defined",
    "sentencepiece bpe without ChatML",
]  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
@quick
@given(conversation=conversations)
def test_the_supervised_tokens_of_every_turn_decode_to_its_content_and_its_end(
    name: str, conversation: Conversation, lossless_tokenizers: dict[str, SFTTokenizer]
) -> None:
    check_exact(conversation, lossless_tokenizers[name], name=name)


@pytest.mark.parametrize("name", SMALL)
@quick
@given(conversation=conversations)
def test_no_message_ever_becomes_a_control_token(
    name: str, conversation: Conversation, lossless_tokenizers: dict[str, SFTTokenizer]
) -> None:
    check_content_is_data(conversation, lossless_tokenizers[name])


_loaded: dict[Path, SFTTokenizer] = {}


def real(shared_dir: Path, name: str) -> SFTTokenizer:
    path = shared_dir / "tokenizers" / name / "tokenizer.json"
    if path not in _loaded:
        _loaded[path] = load_tokenizer(path)
    return _loaded[path]


@pytest.mark.parametrize("name", LOSSLESS)
@quick
@given(conversation=conversations)
def test_law_1_with_real_tokenizers(name: str, conversation: Conversation, shared_dir: Path) -> None:
    tokenizer = real(shared_dir, name)
    assume(not any(word in m.content for m in conversation.messages for word in lost_words(tokenizer)))
    check_exact(conversation, tokenizer, name=name)


@pytest.mark.parametrize("name", LOSSY)
@quick
@given(conversation=conversations)
def test_law_1_with_real_tokenizers_that_lose_something(
    name: str, conversation: Conversation, shared_dir: Path
) -> None:
    check_exact_as_far_as_the_tokenizer_is(conversation, real(shared_dir, name))


@pytest.mark.parametrize("name", LOSSLESS + LOSSY)
@quick
@given(conversation=conversations)
def test_law_4_with_real_tokenizers(name: str, conversation: Conversation, shared_dir: Path) -> None:
    check_content_is_data(conversation, real(shared_dir, name))


@quick
@given(conversation=conversations)
def test_ids_are_those_of_the_whole_text_where_no_token_is_cut_and_no_message_spells_a_control_token(
    conversation: Conversation, chatml_tokenizer: SFTTokenizer, tokenizer_folder: Path
) -> None:
    rendered = FORMATTER.render(conversation)
    spans = [(span.start, span.end) for span in rendered.spans]
    encoding = chatml_tokenizer.encode(rendered.text, markers=rendered.markers, spans=spans)
    spelled = any(token in m.content for m in conversation.messages for token in chatml_tokenizer.control_tokens)
    if encoding.num_splits == 0 and not spelled:
        reference = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
        assert encoding.ids_T.tolist() == reference.encode(rendered.text, add_special_tokens=False).ids


def check_bytes_give_the_librarys_offsets(conversation: Conversation, tokenizer: SFTTokenizer) -> None:
    assert isinstance(tokenizer, FastTokenizer)
    rendered = FORMATTER.render(conversation)
    controls = [
        Control(start, end, tokenizer.control_tokens[rendered.text[start:end]])
        for start, end in rendered.markers
        if rendered.text[start:end] in tokenizer.control_tokens
    ]
    by_bytes = tokenizer._encode_by_bytes(rendered.text, controls)
    reference = tokenizer._official.encode(rendered.text, add_special_tokens=False)
    # Only a normalizer may make the bytes of the tokens differ from those of the text.
    assert by_bytes is not None or tokenizer._official.normalizer is not None
    if by_bytes is not None:
        assert by_bytes[0].tolist() == reference.ids
        assert list(map(tuple, by_bytes[1].tolist())) == reference.offsets


@quick
@given(conversation=conversations, stretch=st.sampled_from([1, 20, 8192]))
def test_the_bytes_of_tokens_give_the_offsets_of_the_library(
    conversation: Conversation, stretch: int, lossless_tokenizers: dict[str, SFTTokenizer]
) -> None:
    with mock.patch("primus.sft.tokenizer.fast._STRETCH_CHARS", stretch):
        for name in ("byte-level", "byte-level without ChatML"):
            check_bytes_give_the_librarys_offsets(conversation, lossless_tokenizers[name])


@pytest.mark.parametrize("name", ["qwen2", "llama3", "gpt2", "minimind", "deepseek-coder", "claude-legacy"])
@quick
@given(conversation=conversations, stretch=st.sampled_from([1, 20, 8192]))
def test_the_bytes_of_tokens_give_the_offsets_of_the_library_with_real_tokenizers(
    name: str, conversation: Conversation, stretch: int, shared_dir: Path
) -> None:
    with mock.patch("primus.sft.tokenizer.fast._STRETCH_CHARS", stretch):
        check_bytes_give_the_librarys_offsets(conversation, real(shared_dir, name))


def test_very_long_turns_and_very_many_turns_are_exact(lossless_tokenizers: dict[str, SFTTokenizer]) -> None:
    long = Conversation((Message("user", "x " * 5000), Message("assistant", "The answer 👍🏽 is\n" * 700)))
    turns = [
        Message("user", f"What is {i}?") if i % 2 == 0 else Message("assistant", f" It is {i}!\n") for i in range(300)
    ]
    for name in ("byte-level", "byte-level without ChatML", "metaspace first"):
        check_exact(long, lossless_tokenizers[name], name=name)
        check_exact(Conversation(tuple(turns)), lossless_tokenizers[name], name=name)


tokens_and_weights = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=20
).map(lambda pairs: (np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs], dtype=np.float32)))


@quick
@given(pair=tokens_and_weights, room=st.integers(0, 5), pad_id=st.integers(0, 9))
def test_labels_and_loss_mask_are_shifted_together_and_padding_is_masked_by_position(
    pair: tuple[np.ndarray, np.ndarray], room: int, pad_id: int
) -> None:
    tokens, weights = pair
    num = len(tokens) - 1
    targets = next_token_targets(tokens, weights, length=num + room, pad_id=pad_id)
    for s in range(num):
        assert targets.input_ids_S[s] == tokens[s]
        assert targets.labels_S[s] == tokens[s + 1]
        assert targets.loss_mask_S[s] == weights[s + 1]
    assert (targets.input_ids_S[num:] == pad_id).all()
    assert (targets.labels_S[num:] == pad_id).all()
    assert (targets.loss_mask_S[num:] == 0).all()
