# SPDX-License-Identifier: Apache-2.0
"""Plans: every sequence once, no pack too full, hardly a position empty."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from primus.sft.packing import METHODS, Method, PackPlan, pack_sequences
from primus.sft.stats.packing_estimate import best_fit_decreasing


def packs_of(plan: PackPlan) -> list[list[int]]:
    return [plan.pack(p).tolist() for p in range(len(plan))]


@st.composite
def packings(draw: st.DrawFn) -> tuple[list[int], int]:
    capacity = draw(st.sampled_from([1, 2, 7, 40, 1000, 65_535, 65_536, 200_000]))
    return draw(st.lists(st.integers(1, capacity), max_size=60)), capacity


@given(packings(), st.sampled_from(METHODS), st.sampled_from(["int32", "int64", "uint64"]))
def test_every_sequence_is_packed_once_and_fits(packing: tuple[list[int], int], method: Method, dtype: str) -> None:
    lengths, capacity = packing
    plan = pack_sequences(np.array(lengths, dtype=dtype), capacity=capacity, method=method)
    packs = packs_of(plan)
    assert sorted(item for pack in packs for item in pack) == list(range(len(lengths)))
    assert all(pack and sum(lengths[item] for item in pack) <= capacity for pack in packs)
    assert plan.num_positions_P(np.array(lengths, dtype=dtype)).tolist() == [sum(lengths[i] for i in p) for p in packs]
    assert plan.fill == (sum(lengths) / (len(packs) * capacity) if packs else 0)


@given(packings())
def test_without_packing_each_sequence_is_alone(packing: tuple[list[int], int]) -> None:
    lengths, capacity = packing
    plan = pack_sequences(np.array(lengths, dtype=np.int64), capacity=capacity, method="none")
    assert packs_of(plan) == [[item] for item in range(len(lengths))]


@given(packings())
def test_sequential_packs_end_where_the_next_sequence_does_not_fit(packing: tuple[list[int], int]) -> None:
    lengths, capacity = packing
    packs: list[list[int]] = []
    for item, length in enumerate(lengths):
        if packs and sum(lengths[i] for i in packs[-1]) + length <= capacity:
            packs[-1].append(item)
        else:
            packs.append([item])
    plan = pack_sequences(np.array(lengths, dtype=np.int64), capacity=capacity, method="sequential")
    assert packs_of(plan) == packs


@given(packings())
def test_the_estimate_of_a_histogram_is_what_packing_gives(packing: tuple[list[int], int]) -> None:
    lengths, capacity = packing
    plan = pack_sequences(np.array(lengths, dtype=np.int64), capacity=capacity, method="best_fit")
    estimate = best_fit_decreasing(Counter(lengths), capacity=capacity)
    assert (estimate.num_bins, estimate.fill) == (len(plan), plan.fill)


@pytest.mark.parametrize(("median", "capacity"), [(400, 4096), (6000, 16_384)])
def test_a_million_sequences_fill_999_positions_in_a_thousand(median: int, capacity: int) -> None:
    lengths = np.random.default_rng(0).lognormal(np.log(median), 1.0, 1_000_000).astype(np.int64).clip(1, capacity)
    plan = pack_sequences(lengths, capacity=capacity, method="best_fit")
    assert plan.fill >= 0.999
    assert plan.num_positions_P(lengths).max() <= capacity
    assert np.array_equal(np.sort(plan.items_N), np.arange(len(lengths)))


@pytest.mark.parametrize("method", METHODS)
def test_what_does_not_fit_is_named(method: Method) -> None:
    with pytest.raises(ValueError, match=r"^sequence 1 has 9 positions, and a pack takes from 1 to 8 \(2 such"):
        pack_sequences(np.array([8, 9, 3, 0]), capacity=8, method=method)
    with pytest.raises(ValueError, match="sequence 2 has 0 positions"):
        pack_sequences(np.array([8, 1, 0]), capacity=8, method=method)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="no packing method 'tight'; take one of none, sequential, best_fit"):
        pack_sequences(np.array([1]), capacity=8, method="tight")  # type: ignore[arg-type]


def test_lengths_are_whole_numbers() -> None:
    with pytest.raises(TypeError, match="Cannot cast"):
        pack_sequences(np.array([1.5]), capacity=8, method="none")


@pytest.mark.parametrize("index", [-1, 2])
def test_a_pack_that_is_not_there_is_an_error(index: int) -> None:
    plan = pack_sequences(np.array([3, 4]), capacity=4, method="none")
    with pytest.raises(IndexError, match=f"pack {index} of 2"):
        plan.pack(index)
