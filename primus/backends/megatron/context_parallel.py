# SPDX-License-Identifier: Apache-2.0
"""Which positions of a sequence each rank of a context-parallel group computes.

A sequence that `size` ranks share is cut into `2 * size` chunks of the same length, and rank `r` has chunk `r` and
chunk `2 * size - 1 - r`. A position attends to those before it, so late chunks are more work than early ones, and each
of these pairs is as much work as every other. Transformer Engine and Megatron cut a sequence the same way.

The conversations of a pack do not matter for the cut: one that lies over the edge of a chunk is computed by several
ranks.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from megatron.core import parallel_state

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ContextRank:
    """A rank of a context-parallel group."""

    rank: int
    """Its number, from 0."""
    size: int
    """How many ranks share each sequence; a group of one has whole sequences."""

    def chunks(self, width: int) -> list[tuple[int, int]]:
        """The positions of a sequence that this rank computes.

        Args:
            width: Positions of the whole sequence, a multiple of `2 * size` where there are several ranks.

        Returns:
            Ranges `[first, last)`, in order; the last rank's chunks are neighbours, and so one range.

        Examples:
            >>> ContextRank(rank=0, size=2).chunks(8)
            [(0, 2), (6, 8)]
            >>> ContextRank(rank=1, size=2).chunks(8)
            [(2, 6)]
        """
        if self.size == 1:
            return [(0, width)]
        chunk, rest = divmod(width, 2 * self.size)
        if rest:
            raise ValueError(f"{width} positions are not a multiple of 2 x {self.size} ranks")
        if self.rank == self.size - 1:
            return [(self.rank * chunk, (self.rank + 2) * chunk)]
        return [(index * chunk, (index + 1) * chunk) for index in (self.rank, 2 * self.size - 1 - self.rank)]

    def positions(self, width: int) -> IntArray:
        """The positions of a sequence that this rank computes, one by one.

        Args:
            width: As for `chunks`.

        Returns:
            Ascending positions, shape [width / size].
        """
        return np.concatenate([np.arange(first, last) for first, last in self.chunks(width)])

    def gathered_place_of(self, positions_K: IntArray, *, width: int) -> IntArray:
        """Where positions of the whole sequence stand when the parts of all ranks are joined one after another.

        Args:
            positions_K: Positions of the sequence.
            width: As for `chunks`.

        Returns:
            Shape [K].

        Examples:
            >>> ContextRank(rank=0, size=2).gathered_place_of(np.arange(8), width=8).tolist()
            [0, 1, 4, 5, 6, 7, 2, 3]
        """
        place_of_W = np.empty(width, dtype=np.int64)
        parts = [ContextRank(rank=rank, size=self.size).positions(width) for rank in range(self.size)]
        place_of_W[np.concatenate(parts)] = np.arange(width)
        return place_of_W[positions_K]


WHOLE_SEQUENCES = ContextRank(rank=0, size=1)


def this_context_rank() -> ContextRank:
    """The place of this process, once Megatron knows the layout of the run."""
    return ContextRank(
        rank=parallel_state.get_context_parallel_rank(), size=parallel_state.get_context_parallel_world_size()
    )
