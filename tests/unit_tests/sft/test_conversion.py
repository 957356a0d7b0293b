# SPDX-License-Identifier: Apache-2.0
"""Conversion in batches: what comes out does not depend on how the rows were cut."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primus.chat.conversations import SourceOptions, read_batches
from primus.chat.fixups import FixUps
from primus.sft.conversion import ConversionCounts, ConversionJob, ConvertedBatch

USER = st.builds(lambda text: {"role": "user", "content": text}, st.sampled_from(["Hi", " ", "", "你好 "]))
ASSISTANT = st.builds(lambda text: {"role": "assistant", "content": text}, st.sampled_from(["Yes", "", "\n"]))
ROWS = st.lists(
    st.one_of(
        st.builds(lambda messages: {"messages": messages, "id": 1}, st.lists(USER | ASSISTANT, max_size=4)),
        st.builds(lambda text: {"instruction": "a", "output": text}, st.text(max_size=3)),
        st.just({"unknown": 1}),
        st.just([]),
    ),
    min_size=1,
    max_size=12,
)
JOBS = st.builds(
    lambda is_fixed, tools: ConversionJob(
        fix_ups=FixUps(strip=is_fixed, drop_empty_turns=is_fixed, drop_leading_assistant=is_fixed), tools=tools
    ),
    st.booleans(),
    st.sampled_from(["keep", "render"]),
)


def convert(path: Path, job: ConversionJob, *, batch_bytes: int) -> tuple[bytes, ConversionCounts, list[Any]]:
    text, counts, bad_rows = b"", ConversionCounts(), []
    for batch in read_batches([path], SourceOptions(), batch_bytes=batch_bytes):
        converted: ConvertedBatch = pickle.loads(pickle.dumps(job.start()(pickle.loads(pickle.dumps(batch)))))
        text += converted.text
        counts.add(converted.counts)
        bad_rows += converted.bad_rows
    return text, counts, bad_rows


@given(rows=ROWS, job=JOBS, batch_bytes=st.integers(1, 200))
def test_batches_of_any_size_give_the_same(
    rows: list[Any], job: ConversionJob, batch_bytes: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    at_once, in_parts = convert(path, job, batch_bytes=1 << 20), convert(path, job, batch_bytes=batch_bytes)
    assert at_once[0] == in_parts[0]
    assert at_once[1].to_dict() == in_parts[1].to_dict()
    assert at_once[1].lines() == in_parts[1].lines()
    assert at_once[2] == in_parts[2]
    text, counts, bad_rows = at_once
    assert counts.ledger.num_rows == len(rows)
    assert text.count(b"\n") == counts.ledger.num_conversations
    assert len(bad_rows) == counts.ledger.num_bad
    if text:
        path.write_bytes(text)
        assert convert(path, job, batch_bytes=1 << 20)[0] == text


def test_an_option_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="tools is 'drop', not one of keep, render"):
        ConversionJob(tools="drop")  # type: ignore[arg-type]
