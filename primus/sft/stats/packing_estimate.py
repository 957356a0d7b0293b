# SPDX-License-Identifier: Apache-2.0
"""How many sequences best-fit-decreasing packing needs, from a histogram of lengths alone."""

from bisect import bisect_left, insort
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PackingEstimate:
    """What packing gives.

    Attributes:
        num_bins: Sequences.
        fill: Share of their positions that are filled; 0 if there are none.
    """

    num_bins: int
    fill: float


def best_fit_decreasing(histogram: Mapping[int, int], *, capacity: int) -> PackingEstimate:
    """Pack lengths into sequences as best-fit decreasing does: the longest first, each where it leaves the least room.

    Lengths and sequences are counted, not listed. While items of one length come, the fullest sequence that has room
    for one stays the fullest until it has none, so all sequences with the same room take as many as fit in one step.
    The work is at most one step per item, and mostly one per pair of a length and a room.

    Args:
        histogram: How many items there are of each length, from 1 to `capacity`.
        capacity: Positions of a sequence.

    Returns:
        The number of sequences, exactly as packing item by item gives it, and how full they are.

    Raises:
        ValueError: If a length is not from 1 to `capacity`, or a count is negative.

    Examples:
        6 + 4, 5 + 5 and 3 fill three sequences of 10 positions:

        >>> best_fit_decreasing({6: 1, 5: 2, 4: 1, 3: 1}, capacity=10)
        PackingEstimate(num_bins=3, fill=0.7666666666666667)
    """
    for length, count in histogram.items():
        if not 1 <= length <= capacity or count < 0:
            raise ValueError(f"{count} items of length {length} do not fit sequences of {capacity} positions")
    # rooms: the different numbers of free positions, ascending; bins[room]: sequences that have as many.
    rooms: list[int] = []
    bins: dict[int, int] = {}
    num_bins = 0

    def put(room: int, count: int) -> None:
        if count and room not in bins:
            insort(rooms, room)
        if count:
            bins[room] = bins.get(room, 0) + count

    for length in sorted(histogram, reverse=True):
        waiting = histogram[length]
        while waiting:
            at = bisect_left(rooms, length)
            room, available = (rooms[at], bins[rooms[at]]) if at < len(rooms) else (capacity, waiting)
            per_bin = room // length
            full = min(available, waiting // per_bin)
            rest = waiting - full * per_bin if full < available else 0
            if at < len(rooms):
                used = full + (rest > 0)
                bins[room] -= used
                if not bins[room]:
                    del bins[room], rooms[at]
            else:
                num_bins += full + (rest > 0)
            put(room - per_bin * length, full)
            if rest:
                put(room - rest * length, 1)
            waiting -= full * per_bin + rest
    total = sum(length * count for length, count in histogram.items())
    return PackingEstimate(num_bins, total / (num_bins * capacity) if num_bins else 0.0)
