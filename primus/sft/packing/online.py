# SPDX-License-Identifier: Apache-2.0
"""Packs out of a stream: best fit among the conversations that wait."""

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")

# A key is a length and, below it, the complement of the number of a conversation: of equally long ones the first has
# the largest key.
_NUMBER_BITS = 48
_LAST_NUMBER = (1 << _NUMBER_BITS) - 1
_NUM_FIRST_CHOICES = 8


class OnlinePacker(Generic[Item]):
    """Packs conversations while they come, with at most `buffer_size` of them held back.

    Conversations wait until there are more than `buffer_size`; then one pack is made and given out. It begins with the
    conversation that has waited longest, so no other waits for more than `buffer_size` packs. It goes on with the
    longest that fits, again and again, until none does. Where that one would leave room, two are looked for that fill
    the pack better: the first of them is one of the 8 longest that fit, the second the longest that fits beside it.
    Equally long conversations leave in the order in which they came.

    The packs depend on nothing but the conversations, in their order; `state_dict` is the list of those that wait.

    Args:
        capacity: Positions of a pack.
        buffer_size: How many conversations may wait.

    Raises:
        ValueError: If one of them is below 1.

    Examples:
        >>> packer = OnlinePacker[str](10, 3)
        >>> [packer.add(name, length) for name, length in [("a", 6), ("b", 5), ("c", 5), ("d", 4)]]
        [[], [], [], [['a', 'd']]]
        >>> packer.flush()
        [['b', 'c']]
    """

    def __init__(self, capacity: int, buffer_size: int) -> None:
        if capacity < 1 or buffer_size < 1:
            raise ValueError(f"packs of {capacity} positions out of {buffer_size} that wait; both are at least 1")
        self.capacity = capacity
        self.buffer_size = buffer_size
        self._clear()

    def _clear(self) -> None:
        self._num_added = 0
        # By when they came, and by key.
        self._waiting: OrderedDict[int, tuple[Item, int]] = OrderedDict()
        self._keys: list[int] = []

    def __len__(self) -> int:
        """How many conversations wait."""
        return len(self._waiting)

    def add(self, item: Item, length: int) -> list[list[Item]]:
        """Take a conversation.

        Args:
            item: What the packs hold in its place.
            length: Its positions.

        Returns:
            The packs that this finishes: one if more than `buffer_size` would wait, otherwise none.

        Raises:
            ValueError: If the length is not from 1 to `capacity`.
        """
        self._put(item, length)
        return [self._make_pack()] if len(self._waiting) > self.buffer_size else []

    def flush(self) -> list[list[Item]]:
        """Pack all that wait, by the same rule."""
        packs = []
        while self._waiting:
            packs.append(self._make_pack())
        return packs

    def state_dict(self) -> dict[str, Any]:
        """All there is to know for going on; JSON if the items are."""
        waiting = [[item, length] for item, length in self._waiting.values()]
        return {"capacity": self.capacity, "buffer_size": self.buffer_size, "waiting": waiting}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another packer was.

        Args:
            state: Its `state_dict`.

        Raises:
            ValueError: If it had another capacity or buffer size: its packs would have been others.
        """
        for name, ours in (("capacity", self.capacity), ("buffer_size", self.buffer_size)):
            if state[name] != ours:
                raise ValueError(f"the state has {name} {state[name]}, and this packer has {ours}")
        self._clear()
        for item, length in state["waiting"]:
            self._put(item, length)

    def _put(self, item: Item, length: int) -> None:
        if not 1 <= length <= self.capacity:
            raise ValueError(f"a conversation of {length} positions does not fit a pack of {self.capacity}")
        self._num_added += 1
        self._waiting[self._num_added] = (item, length)
        insort(self._keys, _key(length, self._num_added))

    def _make_pack(self) -> list[Item]:
        number, (item, length) = self._waiting.popitem(last=False)
        del self._keys[bisect_left(self._keys, _key(length, number))]
        pack = [item]
        room = self.capacity - length
        while places := self._best_places(room):
            for place in places:
                item, length = self._take(place)
                pack.append(item)
                room -= length
        return pack

    def _take(self, place: int) -> tuple[Item, int]:
        key = self._keys.pop(place)
        return self._waiting.pop(_LAST_NUMBER - (key & _LAST_NUMBER))

    def _best_places(self, room: int) -> tuple[int, ...]:
        """Where the next one or two stand among the keys, from the right; none if nothing fits."""
        keys = self._keys
        longest = bisect_left(keys, (room + 1) << _NUMBER_BITS) - 1
        if longest < 0:
            return ()
        filled = keys[longest] >> _NUMBER_BITS
        best: tuple[int, ...] = (longest,)
        for first in range(longest, max(longest - _NUM_FIRST_CHOICES, -1), -1):
            length = keys[first] >> _NUMBER_BITS
            # The second may be taken to be no longer than the first: longer ones were first before.
            if filled == room or 2 * length <= filled:
                break
            second = bisect_left(keys, (room - length + 1) << _NUMBER_BITS) - 1
            second = min(second, first - 1)
            if second >= 0 and length + (keys[second] >> _NUMBER_BITS) > filled:
                filled = length + (keys[second] >> _NUMBER_BITS)
                best = (first, second)
        return best


def _key(length: int, number: int) -> int:
    return (length << _NUMBER_BITS) + _LAST_NUMBER - number
