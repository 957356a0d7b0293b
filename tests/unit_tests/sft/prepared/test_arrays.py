# SPDX-License-Identifier: Apache-2.0
"""The files of a shard: what was written is what is mapped, by this project, by Megatron and by safetensors."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from megatron.core.datasets import indexed_dataset

from primus.errors import DataError
from primus.sft.encoding import EncodedConversation
from primus.sft.prepared.arrays import ARRAYS, INDEX, TOKENS, ShardCounts, map_shard, write_shard
from primus.sft.prepared.disk import facts_of
from primus.sft.sequences import SequenceArrays


def sequence(num_tokens: int, num_spans: int, origin: str) -> EncodedConversation:
    spans = np.arange(2 * num_spans, dtype=np.int64).reshape(-1, 2)
    return EncodedConversation(
        tokens_T=np.arange(num_tokens, dtype=np.int64) * 7919 % 151_000,
        token_spans_K2=spans,
        turns_K=np.arange(num_spans, dtype=np.int64),
        is_end_K=np.arange(num_spans) % 2 == 1,
        weights_K=np.linspace(0, 1, num_spans, dtype=np.float32),
        origin=origin,
    )


def arrays_of(*sequences: EncodedConversation) -> SequenceArrays:
    hashes = [bytes([n % 256]) * 16 for n in range(len(sequences))]
    return SequenceArrays.concatenate([SequenceArrays.of_conversations(sequences, content_hashes=hashes)])


some_sequences = st.lists(
    st.builds(sequence, st.integers(0, 40), st.integers(0, 5), st.sampled_from(["a:1", "你好.jsonl:22", ""])),
    max_size=8,
).map(lambda sequences: arrays_of(*sequences))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(some_sequences)
def test_what_is_mapped_is_what_was_written(tmp_path: Path, arrays: SequenceArrays) -> None:
    facts = write_shard(tmp_path, arrays)
    assert facts == {name: facts_of(tmp_path / name) for name in (TOKENS, INDEX, ARRAYS)}
    mapped = map_shard(tmp_path, ShardCounts.of(arrays))
    for field in fields(SequenceArrays):
        found, expected = getattr(mapped, field.name), getattr(arrays, field.name)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape), field.name
        assert np.array_equal(found, expected), field.name
        assert not found.flags.writeable
        assert found.flags.aligned
    assert mapped.digest() == arrays.digest()


def test_megatron_reads_each_sequence_as_a_document(tmp_path: Path) -> None:
    sequences = [sequence(5, 1, "a:1"), sequence(1, 0, "a:2"), sequence(300, 3, "a:3")]
    write_shard(tmp_path, arrays_of(*sequences))
    dataset = indexed_dataset.IndexedDataset(str(tmp_path / "tokens"))
    assert dataset.index.dtype is np.int32
    assert dataset.sequence_lengths.tolist() == [5, 1, 300]
    assert dataset.document_indices.tolist() == [0, 1, 2, 3]
    for n, written in enumerate(sequences):
        assert dataset[n].tolist() == written.tokens_T.tolist()


def test_megatrons_own_writer_writes_the_same_index(tmp_path: Path) -> None:
    sequences = [sequence(5, 1, "a:1"), sequence(1, 0, "a:2"), sequence(300, 3, "a:3")]
    write_shard(tmp_path, arrays_of(*sequences))
    builder = indexed_dataset.IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.int32)
    for written in sequences:
        builder.add_item(torch.from_numpy(written.tokens_T))
        builder.end_document()
    builder.finalize(str(tmp_path / "theirs.idx"))
    assert (tmp_path / "theirs.idx").read_bytes() == (tmp_path / INDEX).read_bytes()
    assert (tmp_path / "theirs.bin").read_bytes() == (tmp_path / TOKENS).read_bytes()


def test_safetensors_reads_the_other_arrays(tmp_path: Path) -> None:
    from safetensors.numpy import load_file  # noqa: PLC0415

    arrays = arrays_of(sequence(5, 1, "a:1"), sequence(9, 3, "b:7"))
    write_shard(tmp_path, arrays)
    loaded = load_file(tmp_path / ARRAYS)
    assert {*loaded, "tokens_T"} == {field.name for field in fields(SequenceArrays)}
    for name, array in loaded.items():
        assert np.array_equal(array, getattr(arrays, name)), name


@pytest.mark.parametrize("name", [TOKENS, ARRAYS])
def test_a_file_that_is_cut_off_is_refused_by_name(tmp_path: Path, name: str) -> None:
    arrays = arrays_of(sequence(5, 1, "a:1"))
    write_shard(tmp_path, arrays)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:-1])
    with pytest.raises(DataError, match=rf"{name}: is cut off at {len(content) - 1:,} bytes; prepare it again"):
        map_shard(tmp_path, ShardCounts.of(arrays))


def test_arrays_with_the_header_of_others_are_refused(tmp_path: Path) -> None:
    arrays = arrays_of(sequence(5, 1, "a:1"))
    write_shard(tmp_path, arrays)
    content = bytearray((tmp_path / ARRAYS).read_bytes())
    content[20] ^= 1
    (tmp_path / ARRAYS).write_bytes(content)
    with pytest.raises(DataError, match=rf"{ARRAYS}: is damaged"):
        map_shard(tmp_path, ShardCounts.of(arrays))
