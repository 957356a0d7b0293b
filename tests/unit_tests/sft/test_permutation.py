# SPDX-License-Identifier: Apache-2.0
"""Permutations: one-to-one for every size, shuffled well, the same for ever."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from primus.sft import permutation
from primus.sft.permutation import Permutation, random_keys

EDGES = [n for power in range(1, 18) for n in (2**power - 1, 2**power, 2**power + 1)]
# Both ways of making one, small and large, around a square and far from one.
SIZES = [1000, 65_536, 65_537, 100_489, 131_072, 1_000_003]


def whole(n: int, *, seed: int = 1, stream: int = 0) -> npt.NDArray[np.int64]:
    return Permutation(n, seed=seed, stream=stream)[np.arange(n)]


@pytest.fixture(params=[True, False], ids=["table", "cipher"])
def small_numbers_in_a_table(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.param:
        monkeypatch.setattr(permutation, "_TABLE_SIZE", 0)


@pytest.mark.usefixtures("small_numbers_in_a_table")
@pytest.mark.parametrize("n", sorted({1, 2, 3, 5, 6, 10, 99, 100, 101, 9_999, 10_001, *EDGES}))
def test_every_number_comes_once(n: int) -> None:
    assert np.array_equal(np.sort(whole(n)), np.arange(n))


@given(n=st.integers(1, 3000), seed=st.integers(-(2**70), 2**70), stream=st.integers(-(2**70), 2**70))
def test_every_number_comes_once_for_all_seeds(n: int, seed: int, stream: int) -> None:
    assert sorted(whole(n, seed=seed, stream=stream)) == list(range(n))


@given(n=st.integers(1, 2**63 - 1), seed=st.integers(0, 2**64 - 1), data=st.data())
def test_numbers_of_the_largest_permutations_are_distinct_and_below_n(n: int, seed: int, data: st.DataObject) -> None:
    places = data.draw(st.sets(st.integers(0, n - 1), max_size=20))
    numbers = Permutation(n, seed=seed)[np.array(sorted(places), dtype=np.int64)].tolist()
    assert len(set(numbers)) == len(places)
    assert all(0 <= number < n for number in numbers)


@pytest.mark.parametrize("n", [*SIZES, 2**40, 2**63 - 1])
def test_a_number_does_not_depend_on_what_else_is_asked_for(n: int) -> None:
    order = Permutation(n, seed=5)
    places = np.arange(40_000) % 997 * (n // 997)
    numbers = order[places]
    assert np.array_equal(order[places[::-1].reshape(2, -1)], numbers[::-1].reshape(2, -1))
    assert [int(order[int(place)]) for place in places[::4000]] == numbers[::4000].tolist()


@pytest.mark.parametrize("n", SIZES)
def test_each_place_is_equally_likely_to_hold_any_number(n: int) -> None:
    """Over seeds, and over streams of a seed: chi-square of 16 parts of the numbers, 15 degrees of freedom."""
    places = np.array([0, 1, n // 2, n - 1])
    num = 400 if n <= 1000 else 200
    by_seed = np.array([Permutation(n, seed=seed)[places] for seed in range(num)])
    by_stream = np.array([Permutation(n, seed=1, stream=2 * stream)[places] for stream in range(num)])
    for numbers in [*by_seed.T, *by_stream.T]:
        counts = np.bincount(numbers * 16 // n, minlength=16)
        assert ((counts - num / 16) ** 2 / (num / 16)).sum() < 50  # exceeded by chance once in 80,000


@pytest.mark.parametrize("n", SIZES)
def test_the_numbers_of_each_part_of_the_order_are_those_of_a_fair_draw(n: int) -> None:
    numbers = whole(n) / n
    for part in np.array_split(numbers, 20):
        # The mean of so many drawn without putting back, in standard deviations.
        deviation = math.sqrt((1 - len(part) / n) / 12 / len(part))
        assert abs(part.mean() - 0.5) < 5 * deviation


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_neighbours_in_the_order_have_nothing_in_common(n: int, seed: int) -> None:
    """Also those whose places are next to each other in the cipher's square."""
    numbers = whole(n, seed=seed)
    side = math.isqrt(n - 1) + 1
    for lag in {1, 2, 256, side - 1, side, side + 1, -(-n // side), 2 * side}:
        cells = (numbers[:-lag] * 8 // n) * 8 + numbers[lag:] * 8 // n
        expected = len(cells) / 64
        chi_square = ((np.bincount(cells, minlength=64) - expected) ** 2 / expected).sum()
        assert chi_square < 63 + 6 * math.sqrt(2 * 63), lag


@pytest.mark.parametrize("n", SIZES)
def test_places_and_numbers_have_nothing_in_common(n: int) -> None:
    numbers = whole(n)
    assert abs(np.corrcoef(np.arange(n), numbers)[0, 1]) < 5 / math.sqrt(n)
    assert np.count_nonzero(numbers == np.arange(n)) < 10  # on average 1
    rises = np.count_nonzero(numbers[1:] > numbers[:-1])
    assert abs(rises - (n - 1) / 2) < 5 * math.sqrt((n + 1) / 12)


def test_permutations_of_a_handful_are_all_equally_likely() -> None:
    orders = np.array([whole(4, seed=seed) for seed in range(4800)]) @ 4 ** np.arange(4)
    counts = np.unique(orders, return_counts=True)[1]
    assert len(counts) == 24
    assert ((counts - 200) ** 2 / 200).sum() < 60  # 23 degrees of freedom


def test_the_order_is_fixed_for_ever() -> None:
    assert Permutation(7, seed=1234, stream=2)[np.arange(7)].tolist() == SMALL
    assert Permutation(10_000_000, seed=1234, stream=2)[np.arange(4)].tolist() == LARGE
    assert Permutation(2**63 - 1, seed=1234, stream=2)[np.arange(2)].tolist() == LARGEST


SMALL = [5, 0, 2, 3, 6, 4, 1]
LARGE = [6235191, 8994350, 6057745, 3015084]
LARGEST = [6448711029374835696, 5133522906509284251]


@pytest.mark.parametrize("places", [[-1], [7], [0, 8, 3]])
def test_a_place_that_is_not_there_is_an_error(places: list[int]) -> None:
    with pytest.raises(IndexError, match="of 7 numbers"):
        Permutation(7, seed=1)[np.array(places)]


@pytest.mark.parametrize("n", [0, -1, 2**63])
def test_a_size_that_is_not_possible_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match=f"a permutation of {n} numbers"):
        Permutation(n, seed=1)


def test_it_is_as_long_as_it_has_numbers_and_nothing_is_a_part_of_it() -> None:
    assert len(Permutation(2**40, seed=1)) == 2**40
    assert Permutation(2**40, seed=1)[np.zeros((0, 3), dtype=np.int64)].shape == (0, 3)


def test_a_million_places_are_a_million_different_ones() -> None:
    places = Permutation(2**40, seed=1)[np.arange(1_000_000)]
    assert len(np.unique(places)) == 1_000_000
    assert (places.min() >= 0, places.max() < 2**40) == (True, True)


def test_keys_are_spread_evenly() -> None:
    keys = random_keys(100_000, seed=3, stream=5).astype(np.float64) / 2**64
    counts, _ = np.histogram(keys, bins=100, range=(0, 1))
    assert counts.min() > 800
    assert counts.max() < 1200


def test_keys_are_those_of_splitmix64() -> None:
    """Against the arithmetic of whole numbers, and against the first output of the generator for the state 0."""

    def mix(z: int) -> int:
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    assert mix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF
    start = mix((mix(2**64 - 3) + 9) % 2**64)
    keys = [mix((start + 0x9E3779B97F4A7C15 * index) % 2**64) for index in range(1, 4)]
    assert random_keys(3, seed=-3, stream=9).tolist() == keys
