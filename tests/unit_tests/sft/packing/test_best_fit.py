# SPDX-License-Identifier: Apache-2.0
"""Packing runs of equal packs is packing item by item."""

from collections import Counter

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from primus.sft.packing import best_fit_decreasing_runs, pack_sequences


def pack_item_by_item(lengths: list[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing as textbooks have it; of equally full packs the one that has been so for longest."""
    packs: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # with the time of the last change
    for time, item in enumerate(sorted(range(len(lengths)), key=lambda item: (-lengths[item], item))):
        fitting = [(room, since, pack) for pack, (room, since) in enumerate(rooms) if room >= lengths[item]]
        if fitting:
            room, _, pack = min(fitting)
        else:
            room, pack = capacity, len(packs)
            packs.append([])
            rooms.append((room, time))
        packs[pack].append(item)
        rooms[pack] = (room - lengths[item], time)
    return packs


@st.composite
def packings(draw: st.DrawFn) -> tuple[list[int], int]:
    capacity = draw(st.integers(1, 40))
    few_lengths = draw(st.lists(st.integers(1, capacity), min_size=1, max_size=6))
    length = draw(st.sampled_from([st.integers(1, capacity), st.sampled_from(few_lengths)]))
    scale = draw(st.sampled_from([1, 5000]))  # lengths of more than 16 bits, too
    return [scale * n for n in draw(st.lists(length, max_size=120))], scale * capacity


@given(packings())
@example(([2, 6, 5, 3, 4], 10))  # where the emptiest pack is the wrong one
@example(([9, 9, 5, 4, 3, 2], 12))  # where the second of two equal packs comes before a third
def test_the_packs_are_those_of_item_by_item(packing: tuple[list[int], int]) -> None:
    lengths, capacity = packing
    plan = pack_sequences(np.array(lengths, dtype=np.int64), capacity=capacity, method="best_fit")
    assert [plan.pack(p).tolist() for p in range(len(plan))] == pack_item_by_item(lengths, capacity)


@given(packings())
def test_runs_say_how_much_room_their_packs_leave(packing: tuple[list[int], int]) -> None:
    lengths, capacity = packing
    longest_first = sorted(lengths, reverse=True)
    runs = best_fit_decreasing_runs(Counter(lengths), capacity=capacity)
    for run in runs:
        for pack in range(run.num_packs):
            items = [item + pack * num + i for item, num in run.parts for i in range(num)]
            assert run.room == capacity - sum(longest_first[item] for item in items)
    assert [run.opened for run in runs] == [sum(run.num_packs for run in runs[:i]) for i in range(len(runs))]


def test_the_work_does_not_grow_with_the_number_of_items() -> None:
    num_runs = [
        len(best_fit_decreasing_runs({length: factor * (1 + length % 7) for length in range(1, 512)}, capacity=1024))
        for factor in (100, 100_000)
    ]
    assert max(num_runs) <= 2 * 512
