# SPDX-License-Identifier: Apache-2.0
"""Mixtures: each source has its share, and each of its items its turn."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from primus.sft.mixture import Mixture, SourceShare, epochs_from_weights

num_items = st.one_of(st.integers(1, 40), st.integers(900, 3000))
shares = st.builds(SourceShare, num_items, st.floats(0.05, 3.0))
mixtures = st.lists(shares, min_size=1, max_size=4)


def stream(mixture: Mixture, num_epochs: int) -> npt.NDArray[np.int64]:
    return np.concatenate([mixture.items(epoch, 0, mixture.items_per_epoch) for epoch in range(num_epochs)])


def bounds_of(sources: list[SourceShare]) -> npt.NDArray[np.int64]:
    return np.cumsum([0, *(source.num_items for source in sources)], dtype=np.int64)


@given(sources=mixtures, seed=st.integers(0, 2**64 - 1))
def test_an_epoch_has_the_share_of_each_source(sources: list[SourceShare], seed: int) -> None:
    mixture = Mixture(sources, seed=seed)
    for epoch in range(2):
        items = mixture.items(epoch, 0, mixture.items_per_epoch)
        counts = np.histogram(items, bins=bounds_of(sources))[0].tolist()
        assert counts == [max(round(source.epochs * source.num_items), 1) for source in sources]
        assert sum(counts) == mixture.items_per_epoch


@given(sources=mixtures, seed=st.integers(0, 2**64 - 1))
def test_each_item_of_a_source_comes_once_before_any_comes_again(sources: list[SourceShare], seed: int) -> None:
    items = stream(Mixture(sources, seed=seed), 5)
    for source, first in zip(sources, bounds_of(sources), strict=False):
        own = items[(items >= first) & (items < first + source.num_items)] - first
        for start in range(0, len(own), source.num_items):
            one_pass = own[start : start + source.num_items]
            assert len(np.unique(one_pass)) == len(one_pass)


@given(sources=mixtures, seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 5), data=st.data())
def test_a_part_of_an_epoch_is_a_part_of_the_epoch(
    sources: list[SourceShare], seed: int, epoch: int, data: st.DataObject
) -> None:
    mixture = Mixture(sources, seed=seed)
    start = data.draw(st.integers(0, mixture.items_per_epoch))
    stop = data.draw(st.integers(start, mixture.items_per_epoch))
    all_of_it = Mixture(sources, seed=seed).items(epoch, 0, mixture.items_per_epoch)
    assert mixture.items(epoch, start, stop).tolist() == all_of_it[start:stop].tolist()


def test_sources_are_spread_evenly_over_an_epoch() -> None:
    sources = [SourceShare(50_000, 0.5), SourceShare(1_000, 2.0), SourceShare(70_000), SourceShare(3)]
    mixture = Mixture(sources, seed=1)
    items = mixture.items(0, 0, mixture.items_per_epoch)
    which = np.searchsorted(bounds_of(sources), items, side="right") - 1
    for start in range(0, len(items), 1024):
        part = which[start : start + 1024]
        for number, source in enumerate(sources):
            expected = source.items_per_epoch * len(part) / mixture.items_per_epoch
            assert abs(np.count_nonzero(part == number) - expected) < 4


def test_which_positions_of_a_chunk_are_for_a_source_is_shuffled() -> None:
    mixture = Mixture([SourceShare(100_000), SourceShare(100_000)], seed=1)
    first = mixture.items(0, 0, 200_000) < 100_000
    for lag in (1, 2, 3, 1024):
        assert abs(np.corrcoef(first[:-lag], first[lag:])[0, 1]) < 5 / math.sqrt(200_000)


def test_a_rare_item_comes_anywhere_in_an_epoch() -> None:
    mixture = Mixture([SourceShare(1), SourceShare(9_999)], seed=3)
    places = [int(np.flatnonzero(mixture.items(epoch, 0, 10_000) == 0)[0]) for epoch in range(60)]
    assert np.histogram(places, bins=4, range=(0, 10_000))[0].min() >= 5


def test_passes_epochs_sources_and_seeds_differ() -> None:
    sources = [SourceShare(500, 2.0), SourceShare(500, 2.0)]
    items = Mixture(sources, seed=1).items(0, 0, 2000)
    first, second = items[items < 500], items[items >= 500] - 500
    passes = [first[:500], first[500:], second[:500], second[500:]]
    assert len({tuple(one_pass.tolist()) for one_pass in passes}) == 4
    assert not np.array_equal(items, Mixture(sources, seed=1).items(1, 0, 2000))
    assert not np.array_equal(items, Mixture(sources, seed=2).items(0, 0, 2000))


def test_the_order_is_fixed_for_ever() -> None:
    mixture = Mixture([SourceShare(4, 1.5), SourceShare(3), SourceShare(5, 0.4)], seed=1234)
    assert [mixture.items(epoch, 0, 11).tolist() for epoch in range(2)] == FIXED


FIXED = [[10, 11, 5, 2, 1, 0, 3, 0, 2, 4, 6], [3, 4, 9, 5, 1, 0, 3, 6, 2, 1, 7]]


@given(st.lists(st.tuples(st.integers(1, 10**12), st.floats(1e-6, 1e6)), min_size=1, max_size=6))
def test_weights_are_proportions_of_items_and_the_densest_source_is_passed_once(pairs: list[tuple[int, float]]) -> None:
    sizes, weights = [size for size, _ in pairs], [weight for _, weight in pairs]
    epochs = epochs_from_weights(sizes, weights)
    assert max(epochs) == 1
    for size, weight, epoch in zip(sizes, weights, epochs, strict=True):
        assert math.isclose(epoch * size / weight, epochs[0] * sizes[0] / weights[0], rel_tol=1e-9)


@pytest.mark.parametrize(
    ("sizes", "weights", "message"),
    [
        ([], [], "0 weights for 0 sources"),
        ([3], [1.0, 2.0], "2 weights for 1 sources"),
        ([3, 0], [1.0, 2.0], r"source 1 has 0 items and the weight 2\.0"),
        ([3, 4], [0.0, 2.0], r"source 0 has 3 items and the weight 0\.0"),
        ([3, 4], [1.0, -2.0], r"source 1 has 4 items and the weight -2\.0"),
        ([3, 4], [1.0, math.nan], "source 1 has 4 items and the weight nan"),
        ([3, 4], [1.0, math.inf], "source 1 has 4 items and the weight inf"),
    ],
)
def test_weights_that_mean_nothing_are_refused(sizes: list[int], weights: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        epochs_from_weights(sizes, weights)


@pytest.mark.parametrize("epochs", [0.0, -1.0, math.inf, math.nan])
def test_a_source_is_taken_a_number_of_times(epochs: float) -> None:
    with pytest.raises(ValueError, match=f"a source is taken {epochs} times per epoch"):
        SourceShare(3, epochs)


def test_a_mixture_has_sources_with_items() -> None:
    with pytest.raises(ValueError, match="a source without items"):
        SourceShare(0)
    with pytest.raises(ValueError, match="there are no sources to mix"):
        Mixture([], seed=1)
