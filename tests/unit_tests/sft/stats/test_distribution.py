# SPDX-License-Identifier: Apache-2.0
"""Counts that add up exactly."""

import math

from hypothesis import given
from hypothesis import strategies as st

from primus.sft.stats.distribution import MAX_ORIGINS, Distribution, Occurrences

NUMBERS = st.lists(st.integers(0, 50), max_size=60)


@given(NUMBERS.filter(bool), st.integers(0, 100))
def test_a_quantile_is_the_smallest_number_that_enough_others_do_not_exceed(numbers: list[int], percent: int) -> None:
    distribution = Distribution()
    distribution.add_all(numbers)
    rank = max(math.ceil(percent * len(numbers) / 100), 1)
    assert distribution.quantile(percent / 100) == sorted(numbers)[rank - 1]


@given(NUMBERS, NUMBERS)
def test_parts_add_up_to_the_whole(left: list[int], right: list[int]) -> None:
    whole, first, second = Distribution(), Distribution(), Distribution()
    whole.add_all(left + right)
    first.add_all(left)
    second.add_all(right)
    first.merge(second)
    assert (first.counts, first.num, first.total) == (whole.counts, len(left + right), sum(left + right))
    assert (first.min, first.max) == (min(left + right, default=0), max(left + right, default=0))


def test_nothing_has_figures_too() -> None:
    empty = Distribution()
    assert (empty.num, empty.total, empty.mean, empty.min, empty.max, empty.quantile(0.5)) == (0, 0, 0, 0, 0, 0)


def test_the_first_places_are_kept_in_order_over_batches() -> None:
    first, second = Occurrences(), Occurrences()
    for number in range(3):
        first.add(f"a:{number}")
    for number in range(9):
        second.add(f"b:{number}", times=2)
    first.merge(second)
    assert (first.num, first.num_conversations) == (21, 12)
    assert first.origins == ["a:0", "a:1", "a:2", "b:0", "b:1"]
    assert len(first.origins) == MAX_ORIGINS
