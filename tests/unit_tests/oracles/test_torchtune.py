# SPDX-License-Identifier: Apache-2.0
"""torchtune's messages as tokens and masks, for its toy vocabularies of Llama 3 (tiktoken) and Phi-3 (SentencePiece).

Its mask is True where a token is not trained, and it trains the assistant's header too; the spans here are made so.
"""

import base64
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as proto

from primus.sft.formatters.rendered import TextBuilder
from primus.sft.tokenizer import SFTTokenizer, load_tokenizer
from tests.unit_tests.oracles.comparing import Span, mask_of, read_lines

# The pattern of tiktoken's cl100k_base, which torchtune uses for Llama 3.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_CONTROL = {
    "<|begin_of_text|>": 128000, "<|end_of_text|>": 128001, "<|start_header_id|>": 128006, "<|end_header_id|>": 128007,
    "<|eom_id|>": 128008, "<|eot_id|>": 128009, "<|python_tag|>": 128010,
}  # fmt: skip
PHI3_CONTROL = {"<|assistant|>": 32001, "<|system|>": 32006, "<|end|>": 32007, "<|user|>": 32010}
_PIECE = proto.ModelProto.SentencePiece

LLAMA3_CASES = ["text_messages", "message_drop_eot_and_eos", "tool_call_messages"]
PHI3_CASES = ["messages", "messages_no_system_prompt", "messages_drop_eos"]
# An image is one token without text; this project trains text.
OUT_OF_SCOPE = ["image_and_text_messages", "interleaved_image_and_text_messages"]

Cases = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def folder(oracles_dir: Path) -> Path:
    return oracles_dir / "torchtune"


@pytest.fixture(scope="module")
def cases(folder: Path) -> Cases:
    rows = read_lines(folder / "tokenize_messages_cases.jsonl")
    return {f"{row['test'].split('_')[0]} {row['test'].partition('test_tokenize_')[2]}": row for row in rows}


@pytest.fixture(scope="module")
def llama3(folder: Path) -> SFTTokenizer:
    tiktoken = pytest.importorskip("tiktoken")
    lines = (folder / "assets" / "tiktoken_small.model").read_bytes().split(b"\n")
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}
    return load_tokenizer(
        tiktoken.Encoding("small", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=LLAMA3_CONTROL)
    )


@pytest.fixture(scope="module")
def phi3(folder: Path) -> SFTTokenizer:
    """The model of 2000 pieces with Phi-3's control tokens at their ids, and unused pieces between them."""
    model = proto.ModelProto()
    model.ParseFromString((folder / "assets" / "m.model").read_bytes())
    words = {token_id: word for word, token_id in PHI3_CONTROL.items()}
    for token_id in range(len(model.pieces), max(words) + 1):
        kind = _PIECE.CONTROL if token_id in words else _PIECE.UNUSED
        model.pieces.add(piece=words.get(token_id, f"unused {token_id}"), type=kind, score=0)
    return load_tokenizer(sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString()))


def content_of(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["content"] for part in content)


def render_llama3(case: dict[str, Any]) -> tuple[TextBuilder, list[Span]]:
    out, trained = TextBuilder(), []
    ends = case["kwargs"].get("add_end_tokens", True)
    out.marker("<|begin_of_text|>")
    for message in case["messages"]:
        start, _ = out.marker("<|start_header_id|>")
        out.text(message["role"])
        out.marker("<|end_header_id|>")
        out.text("\n\n")
        if message["ipython"]:
            out.marker("<|python_tag|>")
        _, end = out.text(content_of(message).strip())
        if ends or message is not case["messages"][-1]:
            _, end = out.marker("<|eot_id|>" if message["eot"] else "<|eom_id|>")
        if not message["masked"]:
            trained.append((start, end))
    if ends:
        out.marker("<|end_of_text|>")
    return out, trained


def render_phi3(case: dict[str, Any]) -> tuple[TextBuilder, list[Span]]:
    out, trained = TextBuilder(), []
    out.marker("<s>")
    for message in case["messages"]:
        if message["role"] == "system" and case["kwargs"].get("ignore_system_prompt"):
            continue
        start, _ = out.marker(f"<|{message['role']}|>")
        # Each content is encoded on its own there: with a prefix space, and without whitespace at its end.
        out.text(" " + content_of(message).rstrip())
        _, end = out.marker("<|end|>")
        if not message["masked"]:
            trained.append((start, end))
    return out, trained


def test_every_case_is_compared_or_out_of_scope(cases: Cases) -> None:
    assert sorted(cases) == sorted(
        [f"llama3 {name}" for name in LLAMA3_CASES + OUT_OF_SCOPE] + [f"phi3 {name}" for name in PHI3_CASES]
    )
    for name in OUT_OF_SCOPE:
        assert any(part["type"] == "image" for m in cases[f"llama3 {name}"]["messages"][:1] for part in m["content"])


@pytest.mark.parametrize("name", LLAMA3_CASES)
def test_tokens_and_masks_of_llama3_are_the_same(name: str, cases: Cases, llama3: SFTTokenizer) -> None:
    compare(cases[f"llama3 {name}"], llama3, *render_llama3(cases[f"llama3 {name}"]))


@pytest.mark.parametrize("name", PHI3_CASES)
def test_tokens_and_masks_of_phi3_are_the_same(name: str, cases: Cases, phi3: SFTTokenizer) -> None:
    compare(cases[f"phi3 {name}"], phi3, *render_phi3(cases[f"phi3 {name}"]))


def compare(case: dict[str, Any], tokenizer: SFTTokenizer, out: TextBuilder, trained: list[Span]) -> None:
    rendered = out.build()
    encoding = tokenizer.encode(rendered.text, markers=rendered.markers, spans=trained)
    assert encoding.ids_T.tolist() == case["tokens"]
    assert (~mask_of(encoding, trained)).tolist() == case["mask"]
    assert encoding.num_splits == 0
    assert not all(case["mask"])
