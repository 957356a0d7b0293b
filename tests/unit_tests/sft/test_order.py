# SPDX-License-Identifier: Apache-2.0
"""The order of sequences: each once per epoch, the same again, from any step."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from primus.sft.order import SequenceOrder, random_keys

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


def test_keys_are_spread_evenly() -> None:
    keys = random_keys(100_000, seed=3, stream=5).astype(np.float64) / 2**64
    counts, _ = np.histogram(keys, bins=100, range=(0, 1))
    assert counts.min() > 800
    assert counts.max() < 1200


def test_an_empty_data_set_has_no_order() -> None:
    with pytest.raises(ValueError, match="there are no sequences"):
        SequenceOrder(np.zeros(0, dtype=np.int64), seed=1, global_batch_size=1)
