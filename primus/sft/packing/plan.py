# SPDX-License-Identifier: Apache-2.0
"""All sequences of a data set in packs, from their lengths alone.

N: sequences that are packed. P: packs.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from primus.sft.packing.best_fit import best_fit_decreasing_runs

IntArray = npt.NDArray[np.int64]
Method = Literal["none", "sequential", "best_fit"]
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True, slots=True)
class PackPlan:
    """Which sequences share a pack.

    Attributes:
        items_N: Indices of the sequences, each once, pack after pack.
        bounds_P1: Pack `p` holds `items_N[bounds_P1[p]:bounds_P1[p + 1]]`; shape [P + 1].
        fill: Share of the packs' positions that hold a sequence; 0 without packs.
    """

    items_N: IntArray
    bounds_P1: IntArray
    fill: float

    def __len__(self) -> int:
        return len(self.bounds_P1) - 1

    def pack(self, index: int) -> IntArray:
        """The indices of the sequences of a pack.

        Args:
            index: Which pack, from 0.

        Returns:
            The indices, in the order in which the sequences stand in the pack.

        Raises:
            IndexError: If there is no such pack.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"pack {index} of {len(self)}")
        return self.items_N[self.bounds_P1[index] : self.bounds_P1[index + 1]]

    def num_positions_P(self, lengths_N: npt.NDArray[np.integer]) -> IntArray:
        """How many positions of each pack are filled.

        Args:
            lengths_N: The lengths that were packed.

        Returns:
            Shape [P].
        """
        ends = np.zeros(1 + len(self.items_N), dtype=np.int64)
        np.cumsum(lengths_N[self.items_N], out=ends[1:])
        return np.diff(ends[self.bounds_P1])


def pack_sequences(lengths_N: npt.NDArray[np.integer], *, capacity: int, method: Method) -> PackPlan:
    """Decide which sequences share a pack.

    A pure function of its arguments: the plan depends neither on a seed nor on the machine.

    Args:
        lengths_N: Positions of each sequence, from 1 to `capacity`.
        capacity: Positions of a pack.
        method: `none`: each sequence has a pack of its own. `sequential`: sequences stay in their order, and a pack
            ends where the next does not fit. `best_fit`: best-fit decreasing over all of them, the longest first, each
            into the fullest pack that has room for it; of equally long sequences the first comes first.

    Returns:
        The plan. With `best_fit` a pack begins with its longest sequence, and packs with long ones come first: order
        them by seed.

    Raises:
        ValueError: If a length is not from 1 to `capacity`, or there is no such method.

    Examples:
        >>> plan = pack_sequences(np.array([4, 6, 5, 3, 5]), capacity=10, method="best_fit")
        >>> [plan.pack(p).tolist() for p in range(len(plan))]
        [[1, 0], [2, 4], [3]]
    """
    lengths_N = lengths_N.astype(np.int64, casting="same_kind", copy=False)
    outside = np.flatnonzero((lengths_N < 1) | (lengths_N > capacity))
    if len(outside):
        first = int(outside[0])
        raise ValueError(
            f"sequence {first} has {lengths_N[first]} positions, and a pack takes from 1 to {capacity}"
            f" ({len(outside)} such sequences); truncate or drop them before packing"
        )
    if method == "none":
        items_N = np.arange(len(lengths_N))
        bounds_P1 = np.arange(1 + len(lengths_N))
    elif method == "sequential":
        items_N = np.arange(len(lengths_N))
        bounds_P1 = _sequential_bounds(lengths_N, capacity=capacity)
    elif method == "best_fit":
        items_N, bounds_P1 = _best_fit(lengths_N, capacity=capacity)
    else:
        raise ValueError(f"there is no packing method {method!r}; take one of {', '.join(METHODS)}")
    num_positions = (len(bounds_P1) - 1) * capacity
    return PackPlan(items_N, bounds_P1, int(lengths_N.sum(dtype=np.int64)) / num_positions if num_positions else 0.0)


def _sequential_bounds(lengths_N: npt.NDArray[np.integer], *, capacity: int) -> IntArray:
    ends_N1 = np.zeros(1 + len(lengths_N), dtype=np.int64)
    np.cumsum(lengths_N, out=ends_N1[1:])
    # Where a pack ends if it begins at a sequence, for all of them at once; then from pack to pack.
    next_N = memoryview(np.searchsorted(ends_N1, ends_N1[:-1] + capacity, side="right") - 1)
    bounds, at = [0], 0
    while at < len(lengths_N):
        at = next_N[at]
        bounds.append(at)
    return np.array(bounds, dtype=np.int64)


def _best_fit(lengths_N: npt.NDArray[np.integer], *, capacity: int) -> tuple[IntArray, IntArray]:
    counts = np.bincount(lengths_N)
    lengths = np.flatnonzero(counts)
    runs = best_fit_decreasing_runs(
        dict(zip(lengths.tolist(), counts[lengths].tolist(), strict=True)), capacity=capacity
    )
    longest_first_N = _longest_first(lengths_N, longest=len(counts) - 1)
    items_N = np.empty(len(lengths_N), dtype=np.int64)
    start = 0
    for run in runs:
        width = sum(num for _, num in run.parts)
        packs = items_N[start : start + run.num_packs * width].reshape(run.num_packs, width)
        column = 0
        for item, num in run.parts:
            packs[:, column : column + num] = longest_first_N[item : item + run.num_packs * num].reshape(-1, num)
            column += num
        start += run.num_packs * width
    sizes = [sum(num for _, num in run.parts) for run in runs]
    bounds_P1 = np.zeros(1 + sum(run.num_packs for run in runs), dtype=np.int64)
    np.cumsum(np.repeat(np.array(sizes, dtype=np.int64), [run.num_packs for run in runs]), out=bounds_P1[1:])
    return items_N, bounds_P1


def _longest_first(lengths_N: npt.NDArray[np.integer], *, longest: int) -> IntArray:
    """Sort by length, the longest first and of equally long ones the first; digit by digit, in time that grows as N."""
    shorter_N = longest - lengths_N
    # numpy sorts 16 bits by counting.
    order_N = np.argsort((shorter_N & 0xFFFF).astype(np.uint16), kind="stable")
    for shift in range(16, longest.bit_length(), 16):
        digits_N = ((shorter_N[order_N] >> shift) & 0xFFFF).astype(np.uint16)
        order_N = order_N[np.argsort(digits_N, kind="stable")]
    return order_N
