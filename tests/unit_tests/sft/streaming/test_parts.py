# SPDX-License-Identifier: Apache-2.0
"""The shuffle buffer and the sequential packer by themselves."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from primus.sft.packing import METHODS, Method, pack_sequences
from primus.sft.streaming.packing import packer_for
from primus.sft.streaming.shuffling import ShuffleBuffer


def shuffled(buffer: ShuffleBuffer[int], items: range) -> list[int]:
    left = [item for number in items if (item := buffer.add(number)) is not None]
    return [*left, *buffer.drain()]


@given(size=st.integers(0, 30), num=st.integers(0, 100), seed=st.integers(0, 9))
def test_everything_leaves_once_and_nothing_before_its_time(size: int, num: int, seed: int) -> None:
    order = shuffled(ShuffleBuffer[int](size, seed=seed), range(num))
    assert sorted(order) == list(range(num))
    assert all(number <= place + size for place, number in enumerate(order))
    assert order == shuffled(ShuffleBuffer[int](size, seed=seed), range(num))


def test_another_seed_and_another_epoch_give_another_order() -> None:
    orders = set()
    for seed in (1, 2):
        buffer = ShuffleBuffer[int](50, seed=seed)
        for number in range(2):
            buffer.start(epoch=number)
            orders.add(tuple(shuffled(buffer, range(200))))
    assert len(orders) == 4


def test_each_of_those_that_wait_leaves_as_often_as_the_others() -> None:
    """Of three that wait, the first to leave is each of them about a third of the times."""
    leaving: Counter[int | None] = Counter()
    for seed in range(3000):
        buffer = ShuffleBuffer[int](3, seed=seed)
        leaving[[buffer.add(number) for number in range(4)][-1]] += 1
    assert set(leaving) == {0, 1, 2}
    assert all(900 < count < 1100 for count in leaving.values())


def test_more_random_numbers_than_are_drawn_at_once_go_on_the_same() -> None:
    one = ShuffleBuffer[int](2, seed=5)
    for number in range(5000):
        one.add(number)
    other = ShuffleBuffer[int](2, seed=5)
    other.start(epoch=0, num_draws=one.num_draws, waiting=one.waiting)
    assert [one.add(n) for n in range(4000)] == [other.add(n) for n in range(4000)]
    at_edge = ShuffleBuffer[int](1, seed=5)
    at_edge.start(epoch=0, num_draws=4096, waiting=[1])
    assert at_edge.add(2) == 1


@given(st.lists(st.integers(1, 10), max_size=40))
def test_sequential_packs_are_those_of_a_plan(lengths: list[int]) -> None:
    methods: tuple[Method, ...] = ("none", "sequential")
    for method in methods:
        packer = packer_for(method, capacity=10)
        packs = [pack for number, length in enumerate(lengths) for pack in packer.add(number, length)]
        packs += packer.flush()
        plan = pack_sequences(np.array(lengths, dtype=np.int64), capacity=10, method=method)
        assert packs == [plan.pack(p).tolist() for p in range(len(plan))]


@given(st.lists(st.integers(1, 10), max_size=30), st.integers(0, 30))
def test_a_packer_goes_on_from_its_state(lengths: list[int], at: int) -> None:
    for method in METHODS:
        one, other = packer_for(method, capacity=10), packer_for(method, capacity=10)
        for number, length in enumerate(lengths[:at]):
            one.add(number, length)
        other.load_state_dict(one.state_dict())
        for number, length in enumerate(lengths[at:], start=at):
            assert one.add(number, length) == other.add(number, length)
        assert one.flush() == other.flush()
