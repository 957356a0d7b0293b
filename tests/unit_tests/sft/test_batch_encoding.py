# SPDX-License-Identifier: Apache-2.0
"""Usual rows that go through together become the sequences, and the ledger, that they become one by one."""

import json
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from primus.chat.conversations import ConversationBatch, SourceOptions
from primus.chat.plain_lines import read_plain_lines
from primus.chat.reading import RowBatch
from primus.sft.batch_encoding import EncodedBatch, ShardEncoder
from primus.sft.formatters import create_formatter
from primus.sft.options import EncodingOptions
from primus.sft.recipe import Encoder
from primus.sft.sequences import SequenceArrays
from primus.sft.tokenizer import SFTTokenizer, fast
from primus.sft.weighting import TurnSchedule

TEXTS = st.text(max_size=10) | st.sampled_from(["", "<|im_end|>", "\n\nx", "é你好", "word " * 12, "word " * 40, "ok"])
QUESTIONS = st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "user", "tool"]), "content": TEXTS})
ANSWERS = st.fixed_dictionaries({"role": st.just("assistant"), "content": TEXTS})
ROWS = st.builds(
    lambda messages, answer: {"messages": [*messages, answer]}, st.lists(QUESTIONS | ANSWERS, max_size=4), ANSWERS
)


@pytest.fixture(autouse=True)
def _fast_engine_from_the_first_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "_CHARS_BEFORE_ENGINE", 0)


def assert_equal(together: EncodedBatch, one_by_one: EncodedBatch) -> None:
    assert together.ledger.to_dict() == one_by_one.ledger.to_dict()
    assert together.problems == one_by_one.problems
    assert together.bad_rows == one_by_one.bad_rows
    assert together.splits.keys() == one_by_one.splits.keys()
    for name, arrays in together.splits.items():
        for field in fields(SequenceArrays):
            left, right = getattr(arrays, field.name), getattr(one_by_one.splits[name], field.name)
            assert np.array_equal(left, right), (name, field.name)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(ROWS, min_size=1, max_size=8),
    form=st.sampled_from(["openai", "llama3", "phi", "qwen", "gemma"]),
    fraction=st.sampled_from([0.0, 0.0, 0.5]),
    max_seq_length=st.sampled_from([12, 40, 4096]),
    options=st.fixed_dictionaries(
        {
            "truncation": st.sampled_from(["error", "drop", "right", "keep_last_turns", "window"]),
            "supervise_end_of_turn": st.booleans(),
            "supervise_turns": st.sampled_from(["all", "last"]),
            "loss_normalizer": st.sampled_from(["token", "turn"]),
            "loss_weight": st.sampled_from([1.0, 0.5]),
        }
    ),
    schedule=st.sampled_from([TurnSchedule(), TurnSchedule(kind="linear")]),
)
def test_rows_together_become_what_they_become_one_by_one(
    chatml_tokenizer: SFTTokenizer, rows: list[dict[str, Any]], form: str, fraction: float, max_seq_length: int,
    options: dict[str, Any], schedule: TurnSchedule,
) -> None:  # fmt: skip
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    together = RowBatch("a.jsonl", 3, lines)
    one_by_one = RowBatch("a.jsonl", decoded=tuple(together))
    encoder = Encoder(
        chatml_tokenizer,
        create_formatter(form, tokenizer=chatml_tokenizer, eos_token=chatml_tokenizer.eos_token),
        EncodingOptions(**options, schedule=schedule),
    )
    shard_encoder = ShardEncoder(encoder, max_seq_length=max_seq_length, validation_fraction=fraction)
    quick, slow = (shard_encoder.encode(ConversationBatch(b, SourceOptions())) for b in (together, one_by_one))
    assert_equal(quick, slow)


def test_usual_rows_do_go_together(chatml_tokenizer: SFTTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "né"}]}
    batch = ConversationBatch(RowBatch("a.jsonl", lines=json.dumps(row).encode()), SourceOptions())
    assert read_plain_lines(batch) is not None
    encoder = Encoder(chatml_tokenizer, create_formatter("openai"), EncodingOptions())
    monkeypatch.setattr(ConversationBatch, "readings", None)
    assert ShardEncoder(encoder, max_seq_length=100).encode(batch).ledger.num_trained == 1


def test_the_longest_row_that_fits_goes_with_the_others_and_no_longer_one(chatml_tokenizer: SFTTokenizer) -> None:
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "one answer"}]}
    batch = ConversationBatch(RowBatch("a.jsonl", lines=json.dumps(row).encode()), SourceOptions())
    encoder = Encoder(chatml_tokenizer, create_formatter("openai"), EncodingOptions(truncation="drop"))
    num_tokens = len(ShardEncoder(encoder, max_seq_length=100).encode(batch).splits["train"].tokens_T)
    outcomes = [
        ShardEncoder(encoder, max_seq_length=num_tokens - less).encode(batch).ledger.to_dict()["outcomes"]
        for less in (1, 2)
    ]
    assert outcomes == [{"trained": 1}, {"overlong": 1}]
