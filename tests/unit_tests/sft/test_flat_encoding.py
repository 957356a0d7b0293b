# SPDX-License-Identifier: Apache-2.0
"""Many conversations at once are encoded exactly as each of them by itself."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from primus.chat.conversations import ConversationBatch, SourceOptions
from primus.chat.messages import Conversation, Message, ToolCall
from primus.chat.reading import RowBatch
from primus.errors import ConversationError, EngineError
from primus.sft.batch_encoding import EncodedBatch, ShardEncoder
from primus.sft.flat_encoding import encode_conversations
from primus.sft.formatters import ConversationFormatter, create_formatter
from primus.sft.options import EncodingOptions
from primus.sft.recipe import Encoder
from primus.sft.sequences import SequenceArrays, text_hash
from primus.sft.shards import file_groups, shard_batches
from primus.sft.tokenizer import SFTTokenizer, fast, load_tokenizer
from primus.sft.weighting import TurnSchedule
from tests.unit_tests.sft.conftest import byte_level

TEXTS = st.text(max_size=30) | st.sampled_from(
    [
        "",
        " ",
        "\n",
        "\n\nx",
        "x \n",
        "<|im_end|>",
        "a<|im_start|>b",
        "é" * 9,
        "e\u0301",
        "你好",
        "👍🏽",
        "a" * 70,
        "!",
        ">",
    ]
)
WEIGHTS = st.sampled_from([None, None, 0.0, 1.0, 0.5])
QUESTIONS = st.builds(Message, st.sampled_from(["system", "user", "tool"]), TEXTS)
CALLS = st.lists(st.builds(ToolCall, st.just("f"), st.just('{"a": "é"}')), max_size=1).map(tuple)
ANSWERS = st.builds(
    Message, st.just("assistant"), TEXTS, tool_calls=CALLS, weight=WEIGHTS, reasoning=st.none() | st.just("so")
)
CONVERSATIONS = st.builds(
    lambda messages, answer, tools: Conversation((*messages, answer), tools=tools, origin="a:1"),
    st.lists(QUESTIONS | ANSWERS, max_size=5),
    ANSWERS,
    st.sampled_from([(), ('{"name": "f"}',)]),
)


@pytest.fixture(autouse=True)
def _fast_engine_from_the_first_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "_CHARS_BEFORE_ENGINE", 0)


@pytest.fixture(scope="module")
def tokenizers(chatml_tokenizer: SFTTokenizer) -> dict[str, SFTTokenizer]:
    return {
        "chatml": chatml_tokenizer,
        "without chatml": load_tokenizer(byte_level(chatml=False)),
        "nfc": load_tokenizer(byte_level(normalizer=normalizers.NFC())),
    }


def assert_equal_to_tracing(conversations: Sequence[Conversation], encoder: Encoder) -> int:
    """Compare, and return how many were encoded together."""
    flat = encode_conversations(conversations, encoder)
    assert flat.rows.keys() | flat.alone.keys() == set(range(len(conversations)))
    assert flat.rows.keys().isdisjoint(flat.alone)
    for n, traced in enumerate(encoder.trace_all(conversations)):
        got = flat.alone[n] if n in flat.alone else flat.arrays[flat.rows[n]]
        if isinstance(traced, ConversationError):
            assert isinstance(got, ConversationError)
            assert str(got) == str(traced)
            continue
        assert not isinstance(got, ConversationError)
        for name in ("tokens_T", "token_spans_K2", "turns_K", "is_end_K", "weights_K"):
            assert np.array_equal(getattr(got, name), getattr(traced.encoded, name)), name
        assert got.origin == traced.encoded.origin
        if n in flat.rows:
            assert flat.arrays.num_targets_N[flat.rows[n]] == traced.encoded.num_targets
            text = encoder.formatter.render(conversations[n]).text
            assert bytes(flat.arrays.content_hashes_N16[flat.rows[n]]) == text_hash(text.encode())
    return len(flat.rows)


@settings(max_examples=60, deadline=None)
@given(
    conversations=st.lists(CONVERSATIONS, min_size=1, max_size=6),
    name=st.sampled_from(["chatml", "without chatml", "nfc"]),
    form=st.sampled_from(["openai", "alpaca", "llama3", "qwen", "mistral", "gemma", "phi"]),
    end=st.booleans(),
    turns=st.sampled_from(["all", "last"]),
    add_eos=st.booleans(),
)
def test_conversations_are_encoded_together_as_they_are_alone(
    tokenizers: dict[str, SFTTokenizer], conversations: list[Conversation], name: str, form: str, end: bool,
    turns: Any, add_eos: bool,
) -> None:  # fmt: skip
    tokenizer = tokenizers[name]
    options = EncodingOptions(
        supervise_end_of_turn=end, supervise_turns=turns, add_eos=add_eos and tokenizer.eos_id is not None
    )
    formatter = create_formatter(form, eos_token=tokenizer.eos_token, tokenizer=tokenizer)
    assert_equal_to_tracing(conversations, Encoder(tokenizer, formatter, options))


def chat(*texts: str) -> Conversation:
    roles = ("user", "assistant")
    return Conversation(tuple(Message(roles[i % 2], text) for i, text in enumerate(texts)), origin="a:1")  # type: ignore[arg-type]


def plain_encoder(tokenizer: SFTTokenizer, formatter: ConversationFormatter | None = None) -> Encoder:
    form = formatter or create_formatter("openai")
    return Encoder(tokenizer, form, EncodingOptions(supervise_end_of_turn=True))


def test_ordinary_conversations_are_encoded_together(chatml_tokenizer: SFTTokenizer) -> None:
    conversations = [chat("Hello", "Hi"), chat("né", "你好 👍🏽"), chat("a" * 100, "b" * 100, "c", "d")]
    assert assert_equal_to_tracing(conversations, plain_encoder(chatml_tokenizer)) == len(conversations)


def test_one_that_is_not_ordinary_leaves_the_others_alone(tokenizers: dict[str, SFTTokenizer]) -> None:
    other_length, same_length = chat("e\u0301", "e\u0301e\u0301"), chat("b\u0340", "c")  # what NFC makes of them
    spelled, crossing = chat("x", "<|im_end|>"), chat("a", "\n\nb")
    conversations = [chat("Hello", "Hi"), other_length, spelled, same_length, crossing, chat("y", "z")]
    assert assert_equal_to_tracing(conversations, plain_encoder(tokenizers["nfc"])) == 2
    assert assert_equal_to_tracing(conversations, plain_encoder(tokenizers["chatml"])) == 4


def test_bos_and_eos_stand_around_every_conversation(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    tokenizer.bos_id = tokenizer.pad_id
    options = EncodingOptions(add_bos=True, add_eos=True)
    conversations = [chat("Hello", "Hi"), chat("", ""), chat("a", "b")]
    assert assert_equal_to_tracing(conversations, Encoder(tokenizer, create_formatter("openai"), options)) == 3


def test_a_difference_of_the_engines_names_the_conversation(
    chatml_tokenizer: SFTTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(texts: Sequence[str]) -> None:
        raise EngineError("other ids", index=1)

    assert isinstance(chatml_tokenizer, fast.FastTokenizer)
    assert chatml_tokenizer._engine is not None
    monkeypatch.setattr(chatml_tokenizer._engine, "encode_all", fail)
    tools = Conversation((Message("assistant", "x"),), tools=('{"name": "f"}',), origin="b:7")
    with pytest.raises(EngineError, match=r"^b:8: other ids"):
        encode_conversations(
            [tools, Conversation((Message("assistant", "x"),), origin="b:8")],
            plain_encoder(chatml_tokenizer),
        )


LINES = (
    b'{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "answer"}]}\n'
    b'{"messages": []}\n'
    b'{"messages": [{"role": "user", "content": "%s"}, {"role": "assistant", "content": "answer"}]}\n'
    % (b"long " * 50)
    + b'{"instruction": "q", "output": "a"}\nnot json\n'
    b'{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0}]}\n'
    b'{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "<|im_end|>"}]}\n'
)


def encoded_arrays(tokenizer: SFTTokenizer, **options: Any) -> Iterator[tuple[str, SequenceArrays, Any]]:
    batch = ConversationBatch(RowBatch("a.jsonl", lines=LINES), SourceOptions())
    encoder = Encoder(tokenizer, create_formatter("openai"), EncodingOptions(**options))
    got = ShardEncoder(encoder, max_seq_length=100).encode(batch)
    yield from ((name, arrays, got.ledger) for name, arrays in got.splits.items())


@pytest.mark.parametrize("truncation", ["drop", "right"])
def test_a_batch_is_the_same_with_and_without_the_fast_engine(
    chatml_tokenizer: SFTTokenizer, monkeypatch: pytest.MonkeyPatch, truncation: str
) -> None:
    quick = list(encoded_arrays(chatml_tokenizer, truncation=truncation))
    monkeypatch.setattr(fast, "_CHARS_BEFORE_ENGINE", 10**9)
    slow = list(encoded_arrays(chatml_tokenizer, truncation=truncation))
    for (name, quick_arrays, quick_ledger), (_, slow_arrays, slow_ledger) in zip(quick, slow, strict=True):
        assert quick_arrays.digest() == slow_arrays.digest(), name
        assert quick_ledger.to_dict() == slow_ledger.to_dict()
        for field in fields(SequenceArrays):
            assert np.array_equal(getattr(quick_arrays, field.name), getattr(slow_arrays, field.name)), field.name
    ledger = quick[0][2]
    assert ledger.num_rows == 7
    assert ledger.num_bad == 2
    assert sum(ledger.outcomes.values()) == 7


def test_arrays_can_be_cut_and_joined(chatml_tokenizer: SFTTokenizer) -> None:
    conversations = [chat("Hello", "Hi"), chat("né", "你好"), chat("a", "b", "c", "d")]
    arrays = encode_conversations(conversations, plain_encoder(chatml_tokenizer)).arrays
    parts = [arrays.between(0, 1), arrays.between(1, 1), arrays.between(1, 3)]
    assert SequenceArrays.concatenate(parts).digest() == arrays.digest()
    for index in (1, 2):
        part, whole = arrays.between(1, 3)[index - 1], arrays[index]
        for name in ("tokens_T", "token_spans_K2", "turns_K", "is_end_K", "weights_K"):
            assert np.array_equal(getattr(part, name), getattr(whole, name)), name
        assert part.origin == whole.origin
    assert arrays.between(0, 2).digest() != arrays.between(1, 3).digest()


def test_shards_end_where_groups_of_files_end(tmp_path: Path) -> None:
    files = [tmp_path / f"{n}.jsonl" for n in range(3)]
    line = LINES.splitlines(keepends=True)[0]
    for file, size in zip(files, (1 << 20, 66 << 20, 1 << 20), strict=True):
        file.write_bytes(line * (size // len(line)))
    assert file_groups(files) == [tuple(files[:2]), tuple(files[2:])]
    shards = [(shard, batch.rows.path) for shard, batch in shard_batches(files, SourceOptions())]
    numbers = [shard for shard, _ in shards]
    assert numbers == sorted(numbers)
    assert {shard for shard, path in shards if path == str(files[2])} == {2}
    assert [numbers.count(n) for n in range(3)] == [64, len(numbers) - 64 - numbers.count(2), numbers.count(2)]


def test_weights_and_units_follow_the_options(chatml_tokenizer: SFTTokenizer) -> None:
    line = json.dumps({"messages": [{"role": role, "content": "abc"} for role in ("user", "assistant") * 3]})
    batch = ConversationBatch(RowBatch("a.jsonl", lines=f"{line}\n{line}\n".encode()), SourceOptions())

    def arrays(**options: Any) -> SequenceArrays:
        encoder = Encoder(chatml_tokenizer, create_formatter("openai"), EncodingOptions(**options))
        return ShardEncoder(encoder, max_seq_length=1000).encode(batch).splits["train"]

    plain = arrays()
    per_turn = plain.num_targets_N[0] // 3
    assert plain.num_units_N.tolist() == plain.num_targets_N.tolist()
    assert arrays(loss_normalizer="conversation").num_units_N.tolist() == [1, 1]
    by_turn = arrays(loss_normalizer="turn", schedule=TurnSchedule(kind="exponential", decay=0.5), loss_weight=2.0)
    assert by_turn.num_units_N.tolist() == [3, 3]
    assert by_turn.weights_K[~by_turn.is_end_K].reshape(2, 3) * per_turn == pytest.approx(
        np.array([[0.5, 1.0, 2.0]] * 2)
    )
    assert arrays(schedule=TurnSchedule(kind="last_only")).num_targets_N.tolist() == [per_turn, per_turn]


def test_a_window_without_a_target_is_no_sequence(chatml_tokenizer: SFTTokenizer) -> None:
    line = json.dumps({"messages": [{"role": role, "content": "abc " * 9} for role in ("user", "assistant") * 6]})
    batch = ConversationBatch(RowBatch("a.jsonl", lines=line.encode()), SourceOptions())

    def encode(**options: Any) -> EncodedBatch:
        options |= {"truncation": "window", "supervise_end_of_turn": True}
        encoder = Encoder(chatml_tokenizer, create_formatter("openai"), EncodingOptions(**options))
        return ShardEncoder(encoder, max_seq_length=100).encode(batch)

    windows, last = encode(), encode(schedule=TurnSchedule(kind="last_only"))
    assert len(windows.splits["train"]) == windows.ledger.num_windows + 1 > 2
    assert len(last.splits["train"]) == 1
    assert last.ledger.num_windows == 0
    assert last.ledger.num_conversations == 1
