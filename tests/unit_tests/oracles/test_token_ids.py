# SPDX-License-Identifier: Apache-2.0
"""Ids that other tokenizer projects publish for the vocabularies that are here."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from primus.sft.encoding import special_ids
from primus.sft.tokenizer import SFTTokenizer
from tests.unit_tests.oracles.comparing import control_text, read_lines
from tests.unit_tests.oracles.conftest import LoadShared

NUM_KITOKEN_LINES = 20


def ids_of(tokenizer: SFTTokenizer, text: str, *, with_control: bool) -> list[int]:
    """The ids, with control tokens wherever their text stands, or nowhere."""
    markers = control_text(tokenizer, text) if with_control else []
    ids: list[int] = tokenizer.encode(text, markers=markers).ids_T.tolist()
    return ids


# --- kitoken: 20 hard lines ---


def kitoken_texts(oracles_dir: Path) -> list[str]:
    lines = (oracles_dir / "kitoken/small_input.txt").read_text().split("\n")[:NUM_KITOKEN_LINES]
    return [re.sub(r"\\([nsx])", lambda escape: {"n": "\n", "s": " ", "x": ""}[escape[1]], line) for line in lines]


def kitoken_ids(oracles_dir: Path, expected: str) -> list[list[int]]:
    rows = (oracles_dir / f"kitoken/{expected}.txt").read_text().split("\n")[:NUM_KITOKEN_LINES]
    return [[int(token_id) for token_id in row.split(",") if token_id.strip()] for row in rows]


@pytest.mark.parametrize(
    ("tokenizer_name", "expected", "with_control"),
    [
        ("gpt2", "tokenizers/small_tokens_gpt2", True),
        ("llama2", "tokenizers/small_tokens_llama2", True),
        # SentencePiece's own results: control tokens in a text are text.
        ("llama2/tokenizer.model", "sentencepiece/small_tokens_llama2", False),
        ("mistral-v3", "tokenizers/small_tokens_mistral03", True),
        ("mistral-v3/tokenizer.model", "sentencepiece/small_tokens_mistral03", False),
        ("llama3", "tokenizers/small_tokens_llama32", True),
        ("bert-cased", "tokenizers/small_tokens_bert_base_cased", True),
    ],
)
def test_kitokens_ids_are_the_same(
    tokenizer_name: str, expected: str, with_control: bool, oracles_dir: Path, shared_tokenizer: LoadShared
) -> None:
    tokenizer = shared_tokenizer(tokenizer_name)
    ids = kitoken_ids(oracles_dir, expected)
    assert [ids_of(tokenizer, text, with_control=with_control) for text in kitoken_texts(oracles_dir)] == ids
    assert sum(map(len, ids)) > 200


@pytest.mark.parametrize(
    ("tokenizer_name", "expected", "different"),
    [
        ("llama2", "sentencepiece/small_tokens_llama2", []),
        # These lines begin with a space: SentencePiece puts its prefix in front of it, Metaspace does not.
        ("mistral-v3", "sentencepiece/small_tokens_mistral03", [7, 11, 16, 18]),
    ],
)
def test_a_tokenizer_json_and_its_model_file_agree_but_for_known_lines(
    tokenizer_name: str, expected: str, different: list[int], oracles_dir: Path, shared_tokenizer: LoadShared
) -> None:
    of_json, of_model = shared_tokenizer(tokenizer_name), shared_tokenizer(f"{tokenizer_name}/tokenizer.model")
    differences = []
    texts = kitoken_texts(oracles_dir)
    for i, (text, ids) in enumerate(zip(texts, kitoken_ids(oracles_dir, expected), strict=True)):
        assert ids_of(of_model, text, with_control=False) == ids
        if ids_of(of_json, text, with_control=False) != ids:
            differences.append(i)
    assert differences == different


# --- swift-transformers: one long French text ---


@pytest.mark.parametrize(
    ("tokenizer_name", "file"),
    [("gpt2", "gpt2_encoded_tokens"), ("llama2", "llama_encoded"), ("llama2/tokenizer.model", "llama_encoded")],
)
def test_swift_transformers_ids_are_the_same(
    tokenizer_name: str, file: str, oracles_dir: Path, shared_tokenizer: LoadShared
) -> None:
    oracle = json.loads((oracles_dir / f"swift_transformers/{file}.json").read_text())
    tokenizer = shared_tokenizer(tokenizer_name)
    front = [1] if file == "llama_encoded" else []  # it asks for BOS
    ids = tokenizer.encode(oracle["text"]).ids_T.tolist()
    assert front + ids == oracle["token_ids"]
    if tokenizer_name in {"gpt2", "llama2"}:  # a .model does not say whether BOS is wanted
        assert special_ids(tokenizer, add_bos=None, add_eos=False) == (front, [])
    assert len(ids) > 190


# --- mistral-common: official ids of conversations ---


@pytest.mark.parametrize("file", ["mistral-v3", "mistral-v3/tokenizer.model"])
@pytest.mark.parametrize("sample", ["no_tools", "get_weather_full"])
@pytest.mark.parametrize("version", ["v2", "v3"])
def test_mistrals_official_ids_are_the_same(
    file: str, sample: str, version: str, oracles_dir: Path, shared_tokenizer: LoadShared
) -> None:
    folder = oracles_dir / "mistral_common" / "samples" / sample
    oracle = json.loads((folder / f"tokens_{version}.json").read_text())
    ids = oracle["tokens"] if isinstance(oracle, dict) else oracle
    # The text is written as pieces: a space as ▁, a newline as its byte.
    text = (folder / f"text_{version}.txt").read_text().replace("▁", " ").replace("<0x0A>", "\n")
    assert ids_of(shared_tokenizer(file), text, with_control=True) == ids


def test_the_vocabulary_of_mistrals_first_version_is_not_here(oracles_dir: Path, shared_tokenizer: LoadShared) -> None:
    oracle = json.loads((oracles_dir / "mistral_common/samples/no_tools/tokens_v1.json").read_text())
    ids = oracle["tokens"] if isinstance(oracle, dict) else oracle
    pieces = {"[INST]": [733, 16289, 28793]}  # three pieces of text, where later versions have a control token
    assert ids[1:4] == pieces["[INST]"]
    assert "[INST]" in shared_tokenizer("mistral-v3").control_tokens
    assert "[INST]" not in shared_tokenizer("llama2").control_tokens
    assert ids_of(shared_tokenizer("llama2"), " [INST]", with_control=True)[1:] != pieces["[INST]"]


# --- onnxruntime-extensions: rendered chats ---


@pytest.mark.parametrize(
    ("test", "tokenizer_name"),
    [("Phi3MediumChatTemplate", "phi3"), ("Phi3MiniChatTemplate", "phi3"), ("Qwen3ChatTemplate", "qwen2")],
)
def test_onnxruntimes_ids_are_the_same(
    test: str, tokenizer_name: str, oracles_dir: Path, shared_tokenizer: LoadShared
) -> None:
    [case] = [c for c in read_lines(oracles_dir / "onnxruntime_extensions/chat_cases.jsonl") if c["test"] == test]
    assert ids_of(shared_tokenizer(tokenizer_name), case["expected"], with_control=True) == case["expected_ids"]


def test_phi3_vision_has_another_tokenizer(oracles_dir: Path, shared_tokenizer: LoadShared) -> None:
    """Its control tokens leave the newline behind them alone and a prefix space follows; phi3's take it in."""
    cases: list[Any] = read_lines(oracles_dir / "onnxruntime_extensions/chat_cases.jsonl")
    [case] = [c for c in cases if c["test"] == "Phi3VisionChatTemplate"]
    assert len(cases) == 4
    tokenizer = shared_tokenizer("phi3")
    newline, prefix, bos = 13, 29871, 1
    ids = ids_of(tokenizer, case["expected"], with_control=True)
    # The same words, but `System` with a prefix space is another piece than behind a newline.
    theirs = [i for i in case["expected_ids"] if i not in {newline, prefix, bos}]
    assert tokenizer.decode(ids).replace(" ", "") == tokenizer.decode(theirs).replace(" ", "")
    assert not {newline, prefix} & set(ids)
    assert {newline, prefix} <= set(case["expected_ids"])


# --- LLaMA-Factory: where the prompt ends and the answer begins ---


@pytest.mark.parametrize(("name", "tokenizer_name"), [("llama3", "llama3"), ("qwen2.5", "qwen2")])
def test_llama_factorys_prompt_and_answer_are_split_at_the_same_token(
    name: str, tokenizer_name: str, oracles_dir: Path, shared_tokenizer: LoadShared
) -> None:
    [case] = [c for c in read_lines(oracles_dir / "llama_factory/prompt_answer_cases.jsonl") if c["name"] == name]
    tokenizer = shared_tokenizer(tokenizer_name)
    prompt, answer = case["expected_prompt"], case["expected_answer"]
    edge = len(prompt)
    encoding = tokenizer.encode(
        prompt + answer, markers=control_text(tokenizer, prompt + answer), spans=[(edge, edge + len(answer))]
    )
    first = int((encoding.offsets_T2[:, 0] < edge).sum())
    # They encode the two apart.
    assert encoding.ids_T[:first].tolist() == ids_of(tokenizer, prompt, with_control=True)
    assert encoding.ids_T[first:].tolist() == ids_of(tokenizer, answer, with_control=True)
    assert encoding.num_splits == 0


def test_the_vocabularies_of_llamacpp_are_not_here(oracles_dir: Path) -> None:
    """When they are, compare them; this test says so by failing."""
    assert not list((oracles_dir / "llamacpp").glob("vocab/*"))
