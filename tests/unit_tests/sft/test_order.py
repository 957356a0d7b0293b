# SPDX-License-Identifier: Apache-2.0
"""The order of sequences: each once per epoch, the same again, from any step."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primus.backends.megatron.data.batches import rank_micro_batches
from primus.sft import permutation
from primus.sft.order import SequenceOrder, SourceShare, random_keys

sizes = st.integers(1, 60)


def batches(order: SequenceOrder, num: int) -> np.ndarray:
    return np.concatenate([order.global_batch(step) for step in range(num)])


@given(num=sizes, batch=st.integers(1, 9), bucket=st.integers(0, 40), seed=st.integers(0, 2**64 - 1))
def test_every_epoch_has_every_sequence_once(num: int, batch: int, bucket: int, seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(1, 100, num)
    order = SequenceOrder(lengths, seed=seed, global_batch_size=batch, length_bucket=bucket)
    stream = batches(order, -(-3 * num // batch))
    for epoch in range(3):
        assert sorted(stream[epoch * num : (epoch + 1) * num]) == list(range(num))


@given(num=sizes, batch=st.integers(1, 9), bucket=st.integers(0, 40), step=st.integers(0, 200))
def test_a_step_is_the_same_whether_or_not_the_steps_before_were_asked_for(
    num: int, batch: int, bucket: int, step: int
) -> None:
    lengths = np.arange(num)[::-1]
    fresh = SequenceOrder(lengths, seed=7, global_batch_size=batch, length_bucket=bucket)
    walked = SequenceOrder(lengths, seed=7, global_batch_size=batch, length_bucket=bucket)
    for earlier in range(step):
        walked.global_batch(earlier)
    assert np.array_equal(fresh.global_batch(step), walked.global_batch(step))


def test_buckets_put_similar_lengths_into_a_batch_also_in_later_epochs() -> None:
    lengths = np.random.default_rng(0).integers(1, 1000, 1003)
    spread = {
        bucket: np.mean(
            [
                np.ptp(lengths[order.global_batch(step)])
                for order in [SequenceOrder(lengths, seed=1, global_batch_size=8, length_bucket=bucket)]
                for step in range(300)
            ]
        )
        for bucket in (0, 256)
    }
    assert spread[256] < 0.1 * spread[0]


def test_epochs_and_seeds_differ() -> None:
    order = SequenceOrder(np.ones(100, dtype=np.int64), seed=1, global_batch_size=10)
    other = SequenceOrder(np.ones(100, dtype=np.int64), seed=2, global_batch_size=10)
    assert not np.array_equal(order.epoch(0), order.epoch(1))
    assert not np.array_equal(order.epoch(0), other.epoch(0))


def test_the_order_is_fixed_for_ever() -> None:
    """A changed order would train something else after an update, in the middle of a run."""
    order = SequenceOrder(np.array([5, 3, 8, 1, 9, 2, 7]), seed=1234, global_batch_size=2, length_bucket=4)
    assert [order.global_batch(step).tolist() for step in range(4)] == FIXED


FIXED = [[2, 4], [1, 6], [3, 5], [0, 5]]


def test_keys_are_found_here_too() -> None:
    assert random_keys is permutation.random_keys


@pytest.mark.parametrize("bucket", [0, 256])
@pytest.mark.parametrize("mixed", [False, True])
def test_starting_does_not_depend_on_the_number_of_sequences_nor_on_the_step(bucket: int, mixed: bool) -> None:
    """A trillion of them: anything that touched all would end the test."""
    num = 2**40
    lengths = np.broadcast_to(np.int64(7), (num,))
    sources = [SourceShare(num // 2, 2.0), SourceShare(num // 2, 0.5)] if mixed else None
    seen: set[int] = set()
    for step in (0, 1, 1_000_000, 10**12):
        order = SequenceOrder(lengths, seed=1, global_batch_size=64, length_bucket=bucket, sources=sources)
        batch = order.global_batch(step)
        assert len(seen | set(batch.tolist())) == len(seen) + 64
        seen |= set(batch.tolist())


sources = st.lists(st.builds(SourceShare, st.integers(1, 30), st.floats(0.1, 3.0)), min_size=1, max_size=3)


@given(shares=sources, batch=st.integers(1, 9), bucket=st.integers(0, 40), seed=st.integers(0, 2**64 - 1))
def test_epochs_of_a_mixture_follow_each_other_and_have_what_the_shares_say(
    shares: list[SourceShare], batch: int, bucket: int, seed: int
) -> None:
    num = sum(share.num_items for share in shares)
    lengths = np.random.default_rng(seed).integers(1, 100, num)
    order = SequenceOrder(lengths, seed=seed, global_batch_size=batch, length_bucket=bucket, sources=shares)
    size = order.sequences_per_epoch
    stream = batches(order, -(-3 * size // batch))
    bounds = np.cumsum([0, *(share.num_items for share in shares)])
    for epoch in range(3):
        items = stream[epoch * size : (epoch + 1) * size]
        assert np.array_equal(items, order.epoch(epoch))
        counts = np.histogram(items, bins=bounds)[0].tolist()
        assert counts == [share.items_per_epoch for share in shares]


@given(num=sizes, batch=st.integers(1, 9), seed=st.integers(0, 2**64 - 1))
def test_a_mixture_of_one_source_is_that_source(num: int, batch: int, seed: int) -> None:
    lengths = np.ones(num, dtype=np.int64)
    alone = SequenceOrder(lengths, seed=seed, global_batch_size=batch)
    mixed = SequenceOrder(lengths, seed=seed, global_batch_size=batch, sources=[SourceShare(num)])
    assert np.array_equal(batches(alone, 9), batches(mixed, 9))


@given(num=sizes, seed=st.integers(0, 2**64 - 1), mixed=st.booleans())
def test_another_batch_size_cuts_the_same_sequence(num: int, seed: int, mixed: bool) -> None:
    lengths = np.ones(num + 5, dtype=np.int64)
    shares = [SourceShare(num, 0.7), SourceShare(5, 2.0)] if mixed else None
    streams = [
        batches(SequenceOrder(lengths, seed=seed, global_batch_size=size, sources=shares), 64 // size)
        for size in (1, 2, 8, 64)
    ]
    assert all(np.array_equal(streams[0], stream) for stream in streams)


@settings(max_examples=30)
@given(num=sizes, bucket=st.integers(0, 40), seed=st.integers(0, 2**64 - 1), mixed=st.booleans())
def test_data_parallel_ranks_partition_the_same_global_batches(num: int, bucket: int, seed: int, mixed: bool) -> None:
    lengths = np.random.default_rng(seed).integers(1, 100, num + 3)
    shares = [SourceShare(num, 0.7), SourceShare(3, 2.0)] if mixed else None
    for step in (0, 1, 7):
        trained = []
        for num_ranks, micro_batch_size in [(1, 1), (1, 4), (2, 4), (4, 2), (8, 1), (8, 2)]:
            ranks = []
            for rank in range(num_ranks):
                # Each rank has an order of its own, as in a run.
                order = SequenceOrder(lengths, seed=seed, global_batch_size=16, length_bucket=bucket, sources=shares)
                batch = order.global_batch(step)
                ranks.append(
                    rank_micro_batches(
                        batch,
                        micro_batch_size=micro_batch_size,
                        data_parallel_rank=rank,
                        data_parallel_size=num_ranks,
                    )
                )
            in_turn = [micro_batch for of_ranks in zip(*ranks, strict=True) for micro_batch in of_ranks]
            trained.append(np.concatenate(in_turn).tolist())
        assert all(stream == trained[0] for stream in trained)
        assert len(trained[0]) == 16


def test_an_empty_data_set_has_no_order() -> None:
    with pytest.raises(ValueError, match="there are no sequences"):
        SequenceOrder(np.zeros(0, dtype=np.int64), seed=1, global_batch_size=1)


def test_a_batch_has_sequences() -> None:
    with pytest.raises(ValueError, match="a global batch of 0 sequences"):
        SequenceOrder(np.ones(3, dtype=np.int64), seed=1, global_batch_size=0)


def test_sources_have_all_sequences() -> None:
    with pytest.raises(ValueError, match="the sources have 5 sequences, and there are 3"):
        SequenceOrder(np.ones(3, dtype=np.int64), seed=1, global_batch_size=1, sources=[SourceShare(5)])
