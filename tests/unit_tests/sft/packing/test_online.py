# SPDX-License-Identifier: Apache-2.0
"""Packing a stream: the rule, its bounds, and going on after a crash."""

import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from primus.sft.packing import OnlinePacker


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[int], int, int]:
    capacity = draw(st.integers(1, 40))
    return draw(st.lists(st.integers(1, capacity), max_size=60)), capacity, draw(st.integers(1, 20))


def pack_by_the_rule(lengths: list[int], capacity: int, buffer_size: int) -> list[list[int]]:
    """What the documentation says, literally."""
    waiting: list[int] = []
    packs: list[list[int]] = []

    def make_pack() -> None:
        pack = [waiting.pop(0)]
        while True:
            room = capacity - sum(lengths[item] for item in pack)
            fitting = sorted((i for i in waiting if lengths[i] <= room), key=lambda i: (-lengths[i], i))
            if not fitting:
                break
            choices = [[first] for first in fitting[:1]]
            for place, first in enumerate(fitting[:8]):
                beside = [second for second in fitting[place + 1 :] if lengths[first] + lengths[second] <= room]
                choices += [[first, second] for second in beside[:1]]
            best = max(choices, key=lambda choice: sum(lengths[item] for item in choice))  # the first of the best
            pack += best
            for item in best:
                waiting.remove(item)
        packs.append(pack)

    for item in range(len(lengths)):
        waiting.append(item)
        if len(waiting) > buffer_size:
            make_pack()
    while waiting:
        make_pack()
    return packs


@given(streams())
@example(([5, 9, 6, 4, 4], 10, 4))
def test_the_packs_are_those_of_the_rule(stream: tuple[list[int], int, int]) -> None:
    lengths, capacity, buffer_size = stream
    packer = OnlinePacker[int](capacity, buffer_size)
    packs = [pack for item, length in enumerate(lengths) for pack in packer.add(item, length)] + packer.flush()
    assert packs == pack_by_the_rule(lengths, capacity, buffer_size)


@given(streams())
def test_every_conversation_is_packed_once_fits_and_waits_for_a_bounded_time(
    stream: tuple[list[int], int, int],
) -> None:
    lengths, capacity, buffer_size = stream
    packer = OnlinePacker[int](capacity, buffer_size)
    packs: list[list[int]] = []
    made_when_added: dict[int, int] = {}
    left_after: dict[int, int] = {}
    for item, length in enumerate(lengths):
        made_when_added[item] = len(packs)
        packs += packer.add(item, length)
        assert len(packer) <= buffer_size
    packs += packer.flush()
    assert len(packer) == 0
    assert packer.flush() == []
    for number, pack in enumerate(packs):
        assert sum(lengths[item] for item in pack) <= capacity
        left_after |= dict.fromkeys(pack, number)
    assert sorted(item for pack in packs for item in pack) == list(range(len(lengths)))
    assert all(left_after[item] - made_when_added[item] <= buffer_size for item in left_after)


@given(streams())
def test_a_packer_goes_on_from_its_state_at_every_point(stream: tuple[list[int], int, int]) -> None:
    lengths, capacity, buffer_size = stream
    steady, resumed = OnlinePacker[list[int]](capacity, buffer_size), OnlinePacker[list[int]](capacity, buffer_size)
    for item, length in enumerate(lengths):
        state = json.loads(json.dumps(resumed.state_dict()))
        resumed = OnlinePacker[list[int]](capacity, buffer_size)
        resumed.load_state_dict(state)
        assert resumed.add([item, 7], length) == steady.add([item, 7], length)
        assert resumed.state_dict() == steady.state_dict()
    assert resumed.flush() == steady.flush()


def test_loading_a_state_forgets_what_waited() -> None:
    packer = OnlinePacker[str](10, 5)
    empty = packer.state_dict()
    packer.add("a", 3)
    packer.load_state_dict(empty)
    assert packer.flush() == []


@pytest.mark.parametrize(("median", "capacity"), [(400, 4096), (6000, 16_384)])
def test_a_buffer_of_1024_fills_99_positions_in_a_hundred(median: int, capacity: int) -> None:
    lengths = np.random.default_rng(0).lognormal(np.log(median), 1.0, 50_000).astype(np.int64).clip(1, capacity)
    packer = OnlinePacker[int](capacity, 1024)
    packs = [pack for item, length in enumerate(lengths.tolist()) for pack in packer.add(item, length)]
    packs += packer.flush()
    assert lengths.sum() / (len(packs) * capacity) >= 0.99


def test_what_does_not_fit_is_refused_and_the_packer_goes_on() -> None:
    packer = OnlinePacker[str](8, 1)
    for length in (0, 9):
        with pytest.raises(ValueError, match=f"a conversation of {length} positions does not fit a pack of 8"):
            packer.add("a", length)
    assert packer.flush() == []


@pytest.mark.parametrize(("capacity", "buffer_size"), [(0, 1), (1, 0)])
def test_a_packer_without_room_is_refused(capacity: int, buffer_size: int) -> None:
    with pytest.raises(ValueError, match="both are at least 1"):
        OnlinePacker[int](capacity, buffer_size)


def test_a_state_of_other_packs_is_refused() -> None:
    packer = OnlinePacker[int](8, 4)
    with pytest.raises(ValueError, match="the state has capacity 16, and this packer has 8"):
        packer.load_state_dict(OnlinePacker[int](16, 4).state_dict())
    with pytest.raises(ValueError, match="the state has buffer_size 5, and this packer has 4"):
        packer.load_state_dict(OnlinePacker[int](8, 5).state_dict())
