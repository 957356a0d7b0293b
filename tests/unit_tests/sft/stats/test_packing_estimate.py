# SPDX-License-Identifier: Apache-2.0
"""Packing a histogram is packing item by item."""

from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from primus.sft.stats.packing_estimate import PackingEstimate, best_fit_decreasing


def pack_item_by_item(lengths: list[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing as textbooks have it."""
    bins: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        fitting = [items for items in bins if sum(items) + length <= capacity]
        if fitting:
            max(fitting, key=sum).append(length)
        else:
            bins.append([length])
    return bins


@st.composite
def packings(draw: st.DrawFn) -> tuple[list[int], int]:
    capacity = draw(st.integers(1, 40))
    return draw(st.lists(st.integers(1, capacity), max_size=40)), capacity


@given(packings())
@example(([2, 6, 5, 3, 4], 10))  # where the emptiest sequence is the wrong one
def test_the_sequences_are_as_many_as_item_by_item(packing: tuple[list[int], int]) -> None:
    lengths, capacity = packing
    bins = pack_item_by_item(lengths, capacity)
    assert all(sum(items) <= capacity for items in bins)
    estimate = best_fit_decreasing(Counter(lengths), capacity=capacity)
    assert estimate.num_bins == len(bins)
    assert estimate.fill == (sum(lengths) / (len(bins) * capacity) if bins else 0)


def test_nothing_needs_no_sequence() -> None:
    assert best_fit_decreasing({}, capacity=8) == PackingEstimate(0, 0.0)
    assert best_fit_decreasing({4: 0}, capacity=8) == PackingEstimate(0, 0.0)


def test_a_million_items_of_one_length_take_a_moment() -> None:
    assert best_fit_decreasing({3: 1_000_000}, capacity=10).num_bins == 333_334


@pytest.mark.parametrize("histogram", [{0: 1}, {9: 1}, {-1: 1}, {3: -1}])
def test_what_does_not_fit_is_refused(histogram: dict[int, int]) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        best_fit_decreasing(histogram, capacity=8)
