# SPDX-License-Identifier: Apache-2.0
"""How many sequences best-fit-decreasing packing needs, from a histogram of lengths alone."""

from collections.abc import Mapping
from dataclasses import dataclass

from primus.sft.packing import best_fit_decreasing_runs


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
    """Count the sequences that `pack_sequences` makes with `best_fit`.

    Args:
        histogram: How many items there are of each length, from 1 to `capacity`.
        capacity: Positions of a sequence.

    Returns:
        The number of sequences, and how full they are.

    Raises:
        ValueError: If a length is not from 1 to `capacity`, or a count is negative.

    Examples:
        6 + 4, 5 + 5 and 3 fill three sequences of 10 positions:

        >>> best_fit_decreasing({6: 1, 5: 2, 4: 1, 3: 1}, capacity=10)
        PackingEstimate(num_bins=3, fill=0.7666666666666667)
    """
    num_bins = sum(run.num_packs for run in best_fit_decreasing_runs(histogram, capacity=capacity))
    total = sum(length * count for length, count in histogram.items())
    return PackingEstimate(num_bins, total / (num_bins * capacity) if num_bins else 0.0)
