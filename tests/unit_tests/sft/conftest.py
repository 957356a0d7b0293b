# SPDX-License-Identifier: Apache-2.0
"""Small real tokenizers, trained here in a moment, of every kind that there is an engine for."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from primus.sft.tokenizer import SFTTokenizer, load_tokenizer

CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CORPUS = [
    "system\nYou are a helpful assistant.", "user\nHello there, how are you?", "assistant\nI am fine, thank you!",
    'tool\n{"name": "add", "arguments": {"a": 1}}', "café naïve Zürich", "你好，世界！", "مرحبا بالعالم",
    "for i in range(10):\n    print(i)\n\n", "  indented\n\n\nlines  ", "The quick brown fox jumps over the lazy dog.",
] * 5  # fmt: skip


def byte_level(*, normalizer: normalizers.Normalizer | None = None, chatml: bool = True) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=500,
            special_tokens=CHATML if chatml else CHATML[:1],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    return tokenizer


def metaspace(prepend_scheme: str) -> Tokenizer:
    """SentencePiece-like BPE with byte fallback, as Mistral's and Llama 2's files have it."""
    letters = sorted({character for text in CORPUS for character in text.replace(" ", "▁")} | {"▁", "\n"})
    vocab = {
        token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *letters])
    }
    merges = []
    for left, right in ("he", "ll", "▁t", "th", "in", "an"):
        if left in vocab and right in vocab:
            merges.append((left, right))
            vocab.setdefault(left + right, len(vocab))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme, split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in
                                  ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]])  # fmt: skip
    return tokenizer


def sentencepiece_model(kind: str, **options: Any) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(" ".join(CORPUS[i:] + CORPUS[:i]).replace("\n", " ") for i in range(20)),
        model_writer=model,
        model_type=kind,
        vocab_size=420,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer with ChatML, as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_level().save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def chatml_tokenizer(tokenizer_folder: Path) -> SFTTokenizer:
    return load_tokenizer(tokenizer_folder / "tokenizer.json")


@pytest.fixture(scope="session")
def lossless_tokenizers(chatml_tokenizer: SFTTokenizer) -> dict[str, SFTTokenizer]:
    """Tokenizers that decode every text to itself."""
    return {
        "byte-level": chatml_tokenizer,
        "byte-level without ChatML": load_tokenizer(byte_level(chatml=False)),
        "metaspace first": load_tokenizer(metaspace("first")),
        "metaspace always": load_tokenizer(metaspace("always")),
        "metaspace never": load_tokenizer(metaspace("never")),
        "sentencepiece bpe, ChatML as control symbols": load_tokenizer(
            sentencepiece.SentencePieceProcessor(
                model_proto=sentencepiece_model("bpe", control_symbols=["<|im_start|>", "<|im_end|>"])
            )
        ),
        "sentencepiece unigram, ChatML user-defined": load_tokenizer(
            sentencepiece.SentencePieceProcessor(
                model_proto=sentencepiece_model("unigram", user_defined_symbols=["<|im_start|>", "<|im_end|>"])
            )
        ),
        "sentencepiece bpe without ChatML": load_tokenizer(
            sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model("bpe"))
        ),
    }
