# SPDX-License-Identifier: Apache-2.0
"""ChatML through tokenizers of unusual make: what holds for all of them, and what each has got wrong before."""

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import sentencepiece
from hypothesis import given, settings
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from primus.chat import Conversation, Message, parse_conversation
from primus.errors import ConversationError, TokenizerError
from primus.sft.formatters import IM_END, IM_START, OpenAIMessagesFormatter
from primus.sft.tokenizer import SFTTokenizer, load_tokenizer
from primus.sft.tokenizer.shield import PRIVATE_AREAS
from tests.unit_tests.sft.conftest import CORPUS, metaspace, sentencepiece_model
from tests.unit_tests.sft.formatters.generated import MESSAGES

FORMATTER = OpenAIMessagesFormatter()
MARKERS = [IM_START, IM_END]


def added(**flags: Any) -> list[AddedToken]:
    return [AddedToken(marker, **{"special": True, "normalized": False, **flags}) for marker in MARKERS]


def byte_level(merges: Sequence[tuple[str, str]] = (), normalizer: normalizers.Normalizer | None = None) -> Tokenizer:
    """Every byte a token, and the given merges; no token goes across more than they say."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: i for i, letter in enumerate(letters)}
    for left, right in merges:
        vocab.setdefault(left + right, len(vocab))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return tokenizer


def with_markers(tokenizer: Tokenizer, **flags: Any) -> Tokenizer:
    tokenizer.add_tokens(added(**flags))
    return tokenizer


# Newlines stick together, to each other and to what follows, so that headers and answers have to be cut apart.
STICKY = [("Ċ", "Ċ"), ("Ċ", "H"), ("Ġ", "a"), ("a", "Ċ")]
SPELLED = [(IM_END[:i], IM_END[i]) for i in range(1, len(IM_END))] + [(IM_END, "Ċ")]


def plain_sentencepiece(kind: str, **options: Any) -> SFTTokenizer:
    model = sentencepiece_model(kind, **options)
    return load_tokenizer(sentencepiece.SentencePieceProcessor(model_proto=model))


LOSSLESS: dict[str, Callable[[], SFTTokenizer]] = {
    "bytes": lambda: load_tokenizer(with_markers(byte_level())),
    "sticky newlines": lambda: load_tokenizer(with_markers(byte_level(STICKY))),
    "merges that spell a marker and go on": lambda: load_tokenizer(with_markers(byte_level(SPELLED))),
    "markers found in normalized text": lambda: load_tokenizer(
        with_markers(byte_level(STICKY, normalizers.Replace("\x01", "\x01")), normalized=True, special=False)
    ),
    "ordinary tokens that contain markers": lambda: load_tokenizer(_with_overlapping_tokens()),
    "no tokens added at all": lambda: load_tokenizer(byte_level(STICKY)),
    "SentencePiece with a piece of two newlines, control symbols": lambda: plain_sentencepiece(
        "bpe", control_symbols=MARKERS, user_defined_symbols=["\n\n", "\nH"]
    ),
    "SentencePiece with a piece of two newlines, user-defined symbols": lambda: plain_sentencepiece(
        "unigram", user_defined_symbols=[*MARKERS, "\n\n", "\nH"]
    ),
    "SentencePiece without a prefix": lambda: plain_sentencepiece(
        "bpe", control_symbols=MARKERS, user_defined_symbols=["\n\n"], add_dummy_prefix=False
    ),
}


def _with_overlapping_tokens() -> Tokenizer:
    tokenizer = with_markers(byte_level(STICKY))
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in ("assistant\n", "\n\n", "  ", "<|", "|>")])
    return tokenizer


@pytest.fixture(scope="module", params=LOSSLESS)
def lossless(request: pytest.FixtureRequest) -> SFTTokenizer:
    return LOSSLESS[request.param]()


def conversation_of(messages: Sequence[dict[str, Any]]) -> Conversation:
    return parse_conversation({"messages": [*messages, {"role": "assistant", "content": "\nHa"}]})


def check_prompts_and_controls(tokenizer: SFTTokenizer, conversation: Conversation) -> None:
    """Control tokens are the format's own, and each prompt is tokenized as it is alone."""
    rendered = FORMATTER.render(conversation)
    spans = [(span.start, span.end) for span in rendered.spans]
    encoding = tokenizer.encode(rendered.text, markers=rendered.markers, spans=spans)
    control_ids = [tokenizer.control_tokens[marker] for marker in MARKERS if marker in tokenizer.control_tokens]
    found = [int(i) for i in encoding.ids_T if int(i) in control_ids]
    assert found == control_ids * conversation_length(rendered.text, rendered.markers)
    for span in rendered.spans:
        if span.kind == "content":
            prompt = rendered.text[: span.start]
            alone = tokenizer.encode(
                prompt,
                markers=[marker for marker in rendered.markers if marker[1] <= span.start],
                spans=[place for place in spans if place[1] <= span.start],
            )
            assert encoding.ids_T[: len(alone.ids_T)].tolist() == alone.ids_T.tolist()
            if len(encoding.ids_T) > len(alone.ids_T):
                assert encoding.offsets_T2[len(alone.ids_T), 0] >= span.start


def conversation_length(text: str, markers: Sequence[tuple[int, int]]) -> int:
    return sum(text[start:end] == IM_START for start, end in markers)


@given(MESSAGES)
@settings(max_examples=40)
def test_lossless_tokenizers_train_what_was_said_and_keep_prompts_and_controls(
    lossless: SFTTokenizer, messages: list[dict[str, Any]]
) -> None:
    # SentencePiece writes a space as ▁, so ▁ itself does not come back.
    conversation = conversation_of(messages)
    rendered = FORMATTER.render(conversation)
    spans = [(span.start, span.end) for span in rendered.spans]
    encoding = tokenizer_encoding = lossless.encode(rendered.text, markers=rendered.markers, spans=spans)
    assert lossless.decode(encoding.ids_T) == rendered.text.replace("▁", " ")
    covered = [int(start) for start, _ in tokenizer_encoding.offsets_T2]
    assert covered == sorted(covered)
    check_prompts_and_controls(lossless, conversation)


@pytest.mark.parametrize(
    ("lstrip", "rstrip", "normalized", "special"), list(itertools.product([False, True], repeat=4))
)
def test_tokens_that_take_in_whitespace_leave_it_to_turns_and_prompts(
    lstrip: bool, rstrip: bool, normalized: bool, special: bool
) -> None:
    flags = {"lstrip": lstrip, "rstrip": rstrip, "normalized": normalized, "special": special}
    tokenizer = load_tokenizer(with_markers(byte_level(STICKY), **flags))
    for content in ["", " ", "\n", " a\n", "\n\nHa", "a <|im_end|> a", "  <|im_start|>\n"]:
        for question in ["a", "a ", "\n", " <|im_end|> \n"]:
            conversation = conversation_of(
                [{"role": "user", "content": question}, {"role": "assistant", "content": content}]
            )
            check_prompts_and_controls(tokenizer, conversation)
            rendered = FORMATTER.render(conversation)
            spans = [(span.start, span.end) for span in rendered.spans]
            encoding = tokenizer.encode(rendered.text, markers=rendered.markers, spans=spans)
            start, end = spans[0]
            inside_T = (encoding.offsets_T2[:, 0] >= start) & (encoding.offsets_T2[:, 1] <= end)
            inside_T &= encoding.offsets_T2[:, 0] < encoding.offsets_T2[:, 1]
            assert tokenizer.decode(encoding.ids_T[inside_T]) == content


def test_whitespace_behind_a_token_that_takes_it_in_is_cut_where_the_answer_begins() -> None:
    """As with Phi-3, whose header `<|assistant|>` takes in the newline behind it: alone, and with an answer."""
    tokenizer = load_tokenizer(with_markers(byte_level(), rstrip=True))
    text, markers = f"{IM_START}\n\n a{IM_END}", [(0, 12), (16, 26)]
    start, end = (tokenizer.control_tokens[marker] for marker in MARKERS)
    newline, space, letter = tokenizer.encode("\n a").ids_T.tolist()
    assert tokenizer.encode(text[:13], markers=markers[:1]).ids_T.tolist() == [start]
    encoding = tokenizer.encode(text, markers=markers, spans=[(13, 16)])
    assert encoding.ids_T.tolist() == [start, newline, space, letter, end]
    assert encoding.offsets_T2.tolist() == [[0, 12], [13, 14], [14, 15], [15, 16], [16, 26]]
    assert encoding.num_splits == 1


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
@pytest.mark.parametrize("flags", [{}, {"special": False}, {"rstrip": True}, {"lstrip": True}], ids=str)
def test_prefix_spaces_are_those_of_the_prompt_alone(scheme: str, flags: dict[str, Any]) -> None:
    tokenizer = metaspace(scheme)
    tokenizer.add_tokens([AddedToken("\n\n", normalized=False)])
    loaded = load_tokenizer(with_markers(tokenizer, **flags))
    for content in ["", " ", "a", " a", "\n", "\n\na", "  a  \n"]:
        check_prompts_and_controls(loaded, conversation_of([{"role": "assistant", "content": content}]))


def test_a_control_symbol_of_sentencepiece_stands_once_where_the_text_is_cut_behind_it() -> None:
    tokenizer = plain_sentencepiece("bpe", control_symbols=MARKERS, user_defined_symbols=["\n\n"])
    conversation = Conversation((Message("user", "Hi"), Message("assistant", "\nHello")))
    rendered = FORMATTER.render(conversation)
    spans = [(span.start, span.end) for span in rendered.spans]
    encoding = tokenizer.encode(rendered.text, markers=rendered.markers, spans=spans)
    assert encoding.num_splits == 1
    assert encoding.ids_T.tolist().count(tokenizer.control_tokens[IM_START]) == 2
    # No dummy prefix in front of the first control token, as in the tokenizer.json of the same model.
    assert int(encoding.ids_T[0]) == tokenizer.control_tokens[IM_START]


def wordpiece(**flags: Any) -> SFTTokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    )
    return load_tokenizer(with_markers(tokenizer, **flags))


def unigram() -> SFTTokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return load_tokenizer(with_markers(tokenizer))


LOSSY: dict[str, Callable[[], SFTTokenizer]] = {
    "wordpiece": wordpiece,
    "wordpiece, markers found in normalized text": lambda: wordpiece(normalized=True, special=False),
    "unigram": unigram,
    "NFC": lambda: load_tokenizer(with_markers(byte_level(STICKY, normalizers.NFC()))),
    "NFD": lambda: load_tokenizer(with_markers(byte_level(STICKY, normalizers.NFD()))),
    "lower case, markers found in normalized text": lambda: load_tokenizer(
        with_markers(byte_level(STICKY, normalizers.Lowercase()), normalized=True)
    ),
    "no accents": lambda: load_tokenizer(
        with_markers(byte_level(STICKY, normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])))
    ),
    "words only": lambda: load_tokenizer(with_markers(_words())),
}


def _words() -> Tokenizer:
    words = ["[UNK]", "user", "assistant", "system", "tool", "Hello"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


@pytest.fixture(scope="module", params=LOSSY)
def lossy(request: pytest.FixtureRequest) -> SFTTokenizer:
    return LOSSY[request.param]()


@given(MESSAGES)
@settings(max_examples=40)
def test_lossy_tokenizers_keep_prompts_and_controls(lossy: SFTTokenizer, messages: list[dict[str, Any]]) -> None:
    check_prompts_and_controls(lossy, conversation_of(messages))


@pytest.mark.parametrize("name", ["sticky newlines", "SentencePiece with a piece of two newlines, control symbols"])
@pytest.mark.parametrize("area", [PRIVATE_AREAS[0][0], PRIVATE_AREAS[1][0]], ids=hex)
def test_no_private_use_character_becomes_a_control_token(name: str, area: int) -> None:
    """The characters that stand for control tokens inside, typed where text is plain and where it is cut."""
    tokenizer = LOSSLESS[name]()
    for index, (word, token_id) in enumerate(tokenizer.control_tokens.items()):
        typed = chr(area + index) * len(word)
        conversation = conversation_of(
            [{"role": "user", "content": f"{typed}<|im_end|>"}, {"role": "assistant", "content": f"\n{typed}{typed}"}]
        )
        rendered = FORMATTER.render(conversation)
        spans = [(span.start, span.end) for span in rendered.spans]
        ids = tokenizer.encode(rendered.text, markers=rendered.markers, spans=spans).ids_T.tolist()
        assert ids.count(token_id) == sum(rendered.text[a:b] == word for a, b in rendered.markers)
        assert tokenizer.decode(ids) == rendered.text


def test_private_use_characters_of_all_alphabets_are_refused_where_they_can_not_be_told_apart() -> None:
    tokenizer = LOSSLESS["sticky newlines"]()
    with pytest.raises(ConversationError, match="uses private-use characters all over planes 15 and 16") as refused:
        tokenizer.encode("".join(chr(area) for area, _ in PRIVATE_AREAS) + "<|im_end|>")
    assert refused.value.reason == "private_use"


def test_a_tokenizer_that_does_not_find_its_own_markers_is_refused() -> None:
    tokenizer = load_tokenizer(with_markers(byte_level(), single_word=True))
    with pytest.raises(TokenizerError, match="changes its own control tokens, so use another one"):
        check_prompts_and_controls(tokenizer, conversation_of([]))


# --- objects that can only encode and decode ---


class Bytes:
    """Bytes as ids, and a few control tokens that its encoding finds wherever they stand."""

    vocab_size = 260
    control: ClassVar[dict[int, str]] = {256: IM_START, 257: IM_END, 258: "<|secret|>"}

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        position = 0
        while position < len(text):
            found = next((i for i, word in self.control.items() if text.startswith(word, position)), None)
            ids += [found] if found is not None else text[position].encode()
            position += len(self.control[found]) if found is not None else 1
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.control[i].encode() if i > 255 else bytes([i]) for i in ids).decode(errors="replace")


def test_an_object_is_as_exact_as_a_file() -> None:
    tokenizer = load_tokenizer(Bytes())
    for content in ["", " a\n", "\n\n", "你好 👍🏽", "e\u0301\u200d"]:
        conversation = conversation_of(
            [{"role": "user", "content": content}, {"role": "assistant", "content": content}]
        )
        check_prompts_and_controls(tokenizer, conversation)


@pytest.mark.parametrize("text", ["<|im_end|>", "a<|im_start|>b", "what is <|secret|>?"])
def test_an_object_refuses_text_that_it_would_take_for_a_control_token(text: str) -> None:
    with pytest.raises(
        ConversationError, match="Bytes: a message spells out a control token, and this tokenizer can't"
    ):
        load_tokenizer(Bytes()).encode(text)


@pytest.mark.parametrize("text", ["<think>", "<|other|>", "</s>", "[INST]", "<|", "a < b | c > d"])
def test_an_object_takes_text_that_only_looks_like_one(text: str) -> None:
    assert load_tokenizer(Bytes()).encode(text).ids_T.tolist() == list(text.encode())


def test_an_object_whose_ids_exceed_its_vocabulary_is_refused() -> None:
    class Small(Bytes):
        vocab_size = 100
        control: ClassVar[dict[int, str]] = {}

    with pytest.raises(TokenizerError, match="Small: gives the id 240, but its vocab_size is 100; repair it"):
        load_tokenizer(Small())


def test_an_object_that_fails_is_refused_with_its_reason() -> None:
    class Failing(Bytes):
        def encode(self, text: str) -> list[int]:
            raise ValueError(f"no text of length {len(text)}")

    class Nothing(Bytes):
        def encode(self, text: str) -> Any:  # noqa: ARG002
            return None

    with pytest.raises(
        TokenizerError, match=r"Failing: fails to encode '' \(no text of length 0\); use another tokenizer"
    ):
        load_tokenizer(Failing())
    with pytest.raises(TokenizerError, match=r"Nothing: fails to encode '' \('NoneType' object is not iterable\)"):
        load_tokenizer(Nothing())


# --- files that are no tokenizers ---


def test_an_empty_model_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.model").write_bytes(b"")
    with pytest.raises(TokenizerError, match=r"a\.model: is no SentencePiece model"):
        load_tokenizer(tmp_path / "a.model")


def test_a_configuration_that_is_no_object_is_refused(tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json: is not a JSON object; repair it"):
        load_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(TokenizerError, match="AutoTokenizer can't load it"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_with_code_of_its_own_is_refused_without_asking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*_: object) -> str:
        raise AssertionError("a question on the terminal")

    monkeypatch.setattr("builtins.input", ask)
    config = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(TokenizerError, match=r"AutoTokenizer can't load it .*custom code"):
        load_tokenizer(tmp_path)
