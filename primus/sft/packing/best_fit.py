# SPDX-License-Identifier: Apache-2.0
"""Best-fit decreasing on a histogram: packs that are alike are filled together."""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PackRun:
    """Packs that were opened one after another and hold items of the same lengths.

    Items are counted from the longest to the shortest. Of each entry `(item, num)` of `parts` the first pack holds the
    items `item` to `item + num`, the second pack the `num` items behind these, and so on.

    Attributes:
        opened: How many packs were opened before the first.
        num_packs: How many packs these are.
        room: Positions that are left free in each.
        parts: The items, in the order in which they were put in.
    """

    opened: int
    num_packs: int
    room: int
    parts: tuple[tuple[int, int], ...]

    def split(self, num: int) -> "tuple[PackRun, PackRun]":
        """The first packs, and the others."""
        others = tuple((item + num * per_pack, per_pack) for item, per_pack in self.parts)
        return (
            PackRun(self.opened, num, self.room, self.parts),
            PackRun(self.opened + num, self.num_packs - num, self.room, others),
        )

    def filled(self, item: int, *, num: int, length: int) -> "PackRun":
        """The packs with more items: `num` of a length in each, counted from `item`."""
        return PackRun(self.opened, self.num_packs, self.room - num * length, (*self.parts, (item, num)))


def best_fit_decreasing_runs(histogram: Mapping[int, int], *, capacity: int) -> list[PackRun]:
    """Pack items as best-fit decreasing does: the longest first, each into the fullest pack that has room for it.

    Of packs that are equally full, the one takes it that has been so for the longest time.

    While items of one length come, the fullest pack that has room for one stays the fullest until it has none. So a run
    of packs that are alike takes as many items as fit in one step, and runs are only split where the items of a length
    end. That makes at most two new runs for each length, however many items there are: the work grows with the number
    of different lengths and of items in a pack, not with the number of items.

    Args:
        histogram: How many items there are of each length, from 1 to `capacity`.
        capacity: Positions of a pack.

    Returns:
        The packs, in the order in which they were opened.

    Raises:
        ValueError: If a length is not from 1 to `capacity`, or a count is negative.

    Examples:
        Items 0 to 4 of lengths 6, 5, 5, 4 and 3 make three packs of 10: 6 + 4, 5 + 5 and 3.

        >>> [run.parts for run in best_fit_decreasing_runs({6: 1, 5: 2, 4: 1, 3: 1}, capacity=10)]
        [((0, 1), (3, 1)), ((1, 2),), ((4, 1),)]
    """
    for length, count in histogram.items():
        if not 1 <= length <= capacity or count < 0:
            raise ValueError(f"{count} items of length {length} do not fit sequences of {capacity} positions")
    open_runs = _OpenRuns()
    num_opened = item = 0
    for length in sorted(histogram, reverse=True):
        waiting = histogram[length]
        while waiting:
            run = open_runs.take_fullest(length)
            if run is None:
                per_pack = capacity // length
                run = PackRun(num_opened, -(-waiting // per_pack), capacity, ())
                num_opened += run.num_packs
            per_pack = run.room // length
            num_full = min(run.num_packs, waiting // per_pack)
            if num_full:
                full, run = run.split(num_full)
                open_runs.put(full.filled(item, num=per_pack, length=length))
                item += num_full * per_pack
                waiting -= num_full * per_pack
            if run.num_packs and waiting:
                # The items of this length end in the next pack.
                last, run = run.split(1)
                open_runs.put(last.filled(item, num=waiting, length=length))
                item += waiting
                waiting = 0
            if run.num_packs:
                open_runs.put_back(run)
    return sorted(open_runs.all(), key=lambda run: run.opened)


class _OpenRuns:
    """Runs by the room of their packs; those with the same room queue up."""

    def __init__(self) -> None:
        self._rooms: list[int] = []
        self._queues: dict[int, deque[PackRun]] = {}

    def take_fullest(self, length: int) -> PackRun | None:
        """Remove the run that comes first of those with the least room for an item, if there is one."""
        at = bisect_left(self._rooms, length)
        if at == len(self._rooms):
            return None
        queue = self._queues[self._rooms[at]]
        run = queue.popleft()
        if not queue:
            del self._queues[self._rooms.pop(at)]
        return run

    def put(self, run: PackRun) -> None:
        self._queue(run.room).append(run)

    def put_back(self, run: PackRun) -> None:
        self._queue(run.room).appendleft(run)

    def all(self) -> list[PackRun]:
        return [run for queue in self._queues.values() for run in queue]

    def _queue(self, room: int) -> deque[PackRun]:
        if room not in self._queues:
            insort(self._rooms, room)
            self._queues[room] = deque()
        return self._queues[room]
