# SPDX-License-Identifier: Apache-2.0
from types import ModuleType

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from primus.backends.megatron.data.batches import rank_micro_batches, read_micro_batch
from primus.backends.megatron.evaluation import evaluated_sequences

SMALL = st.integers(1, 5)


@given(micro=SMALL, ranks=SMALL, passes=SMALL)
def test_the_ranks_share_the_global_batch_out(micro: int, ranks: int, passes: int) -> None:
    batch_G = np.random.default_rng(0).permutation(micro * ranks * passes)
    shares = [
        rank_micro_batches(batch_G, micro_batch_size=micro, data_parallel_rank=rank, data_parallel_size=ranks)
        for rank in range(ranks)
    ]
    assert all(len(share) == passes and all(len(part) == micro for part in share) for share in shares)
    assert sorted(np.concatenate([part for share in shares for part in share])) == sorted(batch_G)


@given(micro=SMALL, passes=SMALL)
def test_the_micro_batches_are_the_same_for_any_number_of_ranks(micro: int, passes: int) -> None:
    batch_G = np.arange(micro * passes * 6)
    for ranks in (1, 2, 3, 6):
        parts = [
            tuple(part)
            for rank in range(ranks)
            for part in rank_micro_batches(
                batch_G, micro_batch_size=micro, data_parallel_rank=rank, data_parallel_size=ranks
            )
        ]
        assert sorted(parts) == sorted(map(tuple, batch_G.reshape(-1, micro)))


def test_a_micro_batch_holds_every_target_at_its_place(tiny: ModuleType) -> None:
    data = tiny.TinySequences(20)
    batch_B = np.array([3, 17, 5])
    batch = read_micro_batch(data, batch_B, pad_to_multiple_of=8)
    found = {
        (int(place) % 3, int(place) // 3): (int(label), float(weight))
        for place, label, weight in zip(batch.target_positions_N, batch.labels_N, batch.weights_N, strict=True)
    }
    expected = {
        (b, s): (int(data[index]["labels"][s]), float(data[index]["loss_mask"][s]))
        for b, index in enumerate(batch_B)
        for s in range(32)
        if data[index]["loss_mask"][s] > 0
    }
    assert found == expected
    assert len(found) == data.num_targets_N[batch_B].sum()


def test_a_micro_batch_is_as_long_as_its_longest_sequence(tiny: ModuleType) -> None:
    data = tiny.TinySequences(40)
    by_length = np.argsort(data.num_positions_N, kind="stable")
    for batch_B in by_length.reshape(-1, 2):
        longest = data.num_positions_N[batch_B].max()
        for multiple in (1, 8, 24):
            batch = read_micro_batch(data, batch_B, pad_to_multiple_of=multiple)
            rounded = -(-longest // multiple) * multiple
            assert batch.input_ids_BS.shape == batch.position_ids_BS.shape == (2, min(rounded, 32))
            for row, index in zip(batch.input_ids_BS, batch_B, strict=True):
                assert torch.equal(row, data[int(index)]["input_ids"][: len(row)])


@given(num=st.integers(1, 50), at_most=st.integers(0, 60))
def test_an_evaluation_of_some_sequences_spreads_over_the_split(num: int, at_most: int) -> None:
    chosen = evaluated_sequences(num, at_most=at_most)
    assert len(chosen) == (min(at_most, num) or num)
    assert len(set(chosen.tolist())) == len(chosen)
    assert chosen.min() == 0
    assert chosen.max() < num
    gaps = np.diff(chosen)
    assert not len(gaps) or gaps.max() - gaps.min() <= 1
