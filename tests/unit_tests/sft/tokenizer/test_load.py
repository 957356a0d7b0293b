# SPDX-License-Identifier: Apache-2.0
"""Every way to name a tokenizer, and every way to name one wrongly."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from primus.errors import ConversationError, TokenizerError
from primus.sft.formatters import OpenAIMessagesFormatter
from primus.sft.tokenizer import SFTTokenizer, load_tokenizer

MESSAGES = [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "Like this, 👍🏽 naïve."}]


def ids(tokenizer: SFTTokenizer, text: str) -> list[int]:
    return [int(i) for i in tokenizer.encode(text, markers=markers(text)).ids_T]


def markers(text: str) -> list[tuple[int, int]]:
    places = []
    for marker in ("<|im_start|>", "<|im_end|>"):
        start = text.find(marker)
        while start >= 0:
            places.append((start, start + len(marker)))
            start = text.find(marker, start + 1)
    return sorted(places)


def test_a_folder_a_file_and_objects_give_the_same_ids(tokenizer_folder: Path) -> None:
    text, _ = OpenAIMessagesFormatter().format_messages(MESSAGES)
    reference = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    expected = reference.encode(text, add_special_tokens=False).ids
    for source in (
        tokenizer_folder,
        str(tokenizer_folder / "tokenizer.json"),
        AutoTokenizer.from_pretrained(tokenizer_folder),
        reference,
    ):
        tokenizer = load_tokenizer(source)
        assert ids(tokenizer, text) == expected
        assert tokenizer.vocab_size == max(reference.get_vocab().values()) + 1
        assert load_tokenizer(tokenizer) is tokenizer


def test_special_ids_come_from_the_configuration_beside_the_file(tokenizer_folder: Path) -> None:
    for source in (tokenizer_folder, tokenizer_folder / "tokenizer.json"):
        tokenizer = load_tokenizer(source)
        assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (None, 2, 0)
        assert tokenizer.eos_token == "<|im_end|>"
        assert not tokenizer.adds_bos


def test_equal_tokenizers_have_equal_fingerprints(
    tokenizer_folder: Path, lossless_tokenizers: dict[str, SFTTokenizer]
) -> None:
    path = tokenizer_folder / "tokenizer.json"
    assert load_tokenizer(path).fingerprint == load_tokenizer(path).fingerprint
    fingerprints = [tokenizer.fingerprint for tokenizer in lossless_tokenizers.values()]
    assert len(set(fingerprints)) == len(fingerprints)


class OnlyEncodesAndDecodes:
    """What is left of a tokenizer if it can only encode and decode."""

    vocab_size = 500

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text).ids)

    def decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=False))


class LikeMegatron(OnlyEncodesAndDecodes):
    """Megatron's names; it raises for what it lacks."""

    def tokenize(self, text: str) -> np.ndarray:
        return np.array(super().encode(text))

    def detokenize(self, tokens: list[int]) -> str:
        return super().decode(tokens)

    encode = decode = None  # type: ignore[assignment]
    eod = 2

    @property
    def bos(self) -> int:
        raise NotImplementedError


class AddsTokensByItself(OnlyEncodesAndDecodes):
    bos_token_id = 0

    def encode(self, text: str) -> list[int]:
        return [0, *super().encode(text), 2]


@pytest.mark.parametrize("kind", [OnlyEncodesAndDecodes, LikeMegatron, AddsTokensByItself])
def test_an_object_that_only_encodes_and_decodes_gives_the_same_ids_and_covers_every_character(
    kind: type[OnlyEncodesAndDecodes], tokenizer_folder: Path, chatml_tokenizer: SFTTokenizer
) -> None:
    tokenizer = load_tokenizer(kind(tokenizer_folder))
    text, spans = OpenAIMessagesFormatter().format_messages(
        [*MESSAGES, {"role": "assistant", "content": "\n\nNew line"}]
    )
    encoding = tokenizer.encode(text, markers=markers(text), spans=spans)
    reference = chatml_tokenizer.encode(text, markers=markers(text), spans=spans)
    assert encoding.ids_T.tolist() == reference.ids_T.tolist()
    assert encoding.num_splits == reference.num_splits == 1
    for start, end in spans:
        inside = (encoding.offsets_T2[:, 0] >= start) & (encoding.offsets_T2[:, 0] < end)
        assert tokenizer.decode(encoding.ids_T[inside]) == text[start:end]


def test_an_object_refuses_a_message_that_spells_a_control_token(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(OnlyEncodesAndDecodes(tokenizer_folder))
    with pytest.raises(
        ConversationError, match="a message spells out a control token, and this tokenizer can't encode"
    ):
        tokenizer.encode("a <|im_end|> b", markers=[])


def test_an_object_that_changes_the_text_is_refused(tokenizer_folder: Path) -> None:
    class Lowers(OnlyEncodesAndDecodes):
        def decode(self, tokens: list[int]) -> str:
            return super().decode(tokens).lower()

    with pytest.raises(
        TokenizerError, match="offsets can't be recovered, because decoding does not give the text back from"
    ):
        load_tokenizer(Lowers(tokenizer_folder))


def test_objects_without_the_methods_are_refused() -> None:
    class NoDecode:
        vocab_size = 10

        def encode(self, text: str) -> list[int]:
            return [ord(c) for c in text]

    class NoSize(NoDecode):
        vocab_size = None  # type: ignore[assignment]

        def decode(self, tokens: list[int]) -> str:
            return "".join(map(chr, tokens))

    class Words(NoSize):
        def encode(self, text: str) -> Any:
            return text.split() or ["a"]

    with pytest.raises(TokenizerError, match="NoDecode: has none of the methods decode, detokenize, ids_to_text"):
        load_tokenizer(NoDecode())
    with pytest.raises(TokenizerError, match="NoSize: has no vocab_size"):
        load_tokenizer(NoSize())
    with pytest.raises(TokenizerError, match="Words: encoding gives str, not token ids; wrap it"):
        load_tokenizer(Words())


def test_offsets_that_can_not_be_trusted_are_refused(
    chatml_tokenizer: SFTTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere(*_: object) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(3, dtype=np.int64), np.zeros((3, 2), dtype=np.int64)

    monkeypatch.setattr(type(chatml_tokenizer), "_encode", nowhere)
    with pytest.raises(TokenizerError, match="its offsets can't be trusted"):
        load_tokenizer(chatml_tokenizer)


def test_a_sentencepiece_file_is_loaded_by_its_ending(
    tmp_path: Path, lossless_tokenizers: dict[str, SFTTokenizer]
) -> None:
    model = lossless_tokenizers["sentencepiece bpe without ChatML"]._official.serialized_model_proto()  # type: ignore[attr-defined]
    path = tmp_path / "tokenizer.model"
    path.write_bytes(model)
    for source in (path, tmp_path):
        tokenizer = load_tokenizer(source)
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        assert ids(tokenizer, "Hello there 👍") == processor.encode("Hello there 👍")


def bad_sources(tmp_path: Path) -> dict[str, tuple[Path | str, str]]:
    (tmp_path / "empty").mkdir()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "other.json").write_text('{"model": 1}')
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "tiktoken.model").write_bytes(b"IQ== 0\nIg== 1\n")
    broken = tmp_path / "broken-folder"
    broken.mkdir()
    (broken / "tokenizer_config.json").write_text("{}")
    return {
        "missing file": (tmp_path / "no.json", "no such file or folder; check tokenizer_model"),
        "missing folder": (tmp_path / "no/such/folder", "no such file or folder"),
        "empty folder": (
            tmp_path / "empty",
            "the folder holds no tokenizer.json, tokenizer.model or tokenizer_config.json",
        ),
        "another file": (tmp_path / "config.json", r"is not a tokenizer.json \(it has no model\)"),
        "damaged file": (tmp_path / "broken.json", "is not a tokenizer.json|can't be read as a tokenizer"),
        "refused file": (tmp_path / "other.json", "the tokenizers library refuses it"),
        "tiktoken": (
            tmp_path / "tiktoken.model",
            "is no SentencePiece model; a tiktoken file needs its tokenizer.json",
        ),
        "folder without files": (broken, "AutoTokenizer can't load it"),
    }


@pytest.mark.parametrize("what", ["missing file", "missing folder", "empty folder", "another file", "damaged file",
                                  "refused file", "tiktoken", "folder without files"])  # fmt: skip
def test_what_is_no_tokenizer_is_refused_with_its_path(what: str, tmp_path: Path) -> None:
    source, message = bad_sources(tmp_path)[what]
    with pytest.raises(TokenizerError, match=message) as caught:
        load_tokenizer(source)
    assert str(caught.value).startswith(str(source))
    assert "\n" not in str(caught.value)


def test_a_token_that_swallows_whitespace_gives_back_what_belongs_to_a_turn(tokenizer_folder: Path) -> None:
    data = json.loads((tokenizer_folder / "tokenizer.json").read_text())
    for token in data["added_tokens"]:
        token["rstrip"] = token["lstrip"] = True
    tokenizer = load_tokenizer(Tokenizer.from_str(json.dumps(data)))
    text, spans = OpenAIMessagesFormatter().format_messages(
        [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": " padded \n"},
            {"role": "user", "content": " b "},
        ]
    )
    encoding = tokenizer.encode(text, markers=markers(text), spans=spans)
    start, end = spans[0]
    inside = (encoding.offsets_T2[:, 0] >= start) & (encoding.offsets_T2[:, 0] < end)
    assert tokenizer.decode(encoding.ids_T[inside]) == " padded \n"


def test_a_tokenizer_goes_to_another_process_as_it_is(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    tokenizer.chat_templates = {"default": "{{ messages }}"}
    sent = pickle.loads(pickle.dumps(tokenizer))
    names = ("name", "fingerprint", "bos_id", "eos_id", "pad_id", "adds_bos", "control_tokens", "vocab_size",
             "chat_templates", "special_tokens")  # fmt: skip
    assert {name: getattr(sent, name) for name in names} == {name: getattr(tokenizer, name) for name in names}
    text = "<|im_start|>user\nHi né<|im_end|>"
    assert (
        sent.encode(text, markers=[(0, 12)]).ids_T.tolist() == tokenizer.encode(text, markers=[(0, 12)]).ids_T.tolist()
    )
