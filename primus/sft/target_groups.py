# SPDX-License-Identifier: Apache-2.0
"""The groups of targets that a loss is told apart by: which source, which turn, and which part of the turn.

A group is one number. It has its source, its turn and its part in it, so that the sums of a loss over the groups give
those of each source, each turn and each part.

K: token spans of some sequences. C: these sequences. G: groups.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
Dimension = Literal["turn", "role", "source"]
"""What a loss is told apart by."""

NUM_TURNS = 9
"""Turns that are told apart; the last stands for all behind the one before it."""
TURN_NAMES = (*(str(number) for number in range(1, NUM_TURNS)), f"{NUM_TURNS}+")
"""The 1st assistant turn of a sequence, the 2nd, and so on, and all from the 9th on."""
ROLE_NAMES = ("assistant", "assistant_end_of_turn")
"""What the assistant says, and the tokens with which it stops. No other role has targets."""
GROUPS_PER_SOURCE = NUM_TURNS * len(ROLE_NAMES)


def span_groups(
    turns_K: npt.NDArray[np.signedinteger],
    is_end_K: npt.NDArray[np.bool_],
    *,
    num_spans: Sequence[int],
    sources_C: npt.NDArray[np.signedinteger],
) -> IntArray:
    """The group of each span.

    Turns are counted in the sequence, and context turns are counted too: the 2nd is the one that the model writes when
    it sees one answer of the assistant before it, whether that is trained or not. What truncation has cut off in front
    is not seen and not counted.

    Args:
        turns_K: Index of the message that each span belongs to, one sequence's spans behind another's, in order.
        is_end_K: Whether a span is the end of its turn.
        num_spans: Spans of each sequence.
        sources_C: Number of each sequence's source.

    Returns:
        Shape [K].

    Examples:
        Two sequences: messages 1 and 3, each with its end; then message 2 of another source.

        >>> groups_K = span_groups(np.array([1, 1, 3, 3, 2]), np.array([False, True, False, True, False]),
        ...                        num_spans=[4, 1], sources_C=np.array([0, 1]))
        >>> groups_K.tolist()
        [0, 1, 2, 3, 18]
        >>> by_dimension(np.bincount(groups_K, minlength=36), "turn").tolist()
        [3, 2, 0, 0, 0, 0, 0, 0, 0]
    """
    sequence_K = np.repeat(np.arange(len(num_spans)), num_spans)
    is_new_K = np.ones(len(turns_K), dtype=np.bool_)
    is_new_K[1:] = (turns_K[1:] != turns_K[:-1]) | (sequence_K[1:] != sequence_K[:-1])
    counted_K = np.cumsum(is_new_K)
    # Turns of the sequences before each.
    before_C = np.concatenate([[0], counted_K])[np.cumsum(num_spans) - num_spans]
    places_K = np.minimum(counted_K - 1 - before_C[sequence_K], NUM_TURNS - 1)
    return np.asarray((sources_C[sequence_K] * NUM_TURNS + places_K) * len(ROLE_NAMES) + is_end_K, dtype=np.int64)


def by_dimension(
    values_G: npt.NDArray[np.float64] | IntArray, dimension: Dimension
) -> npt.NDArray[np.float64] | IntArray:
    """Add up what the groups have for each turn, role or source.

    Args:
        values_G: A number for each group; G is a multiple of `GROUPS_PER_SOURCE`.
        dimension: What to keep apart.

    Returns:
        A number for each of `TURN_NAMES`, each of `ROLE_NAMES`, or each source.
    """
    values = values_G.reshape(-1, NUM_TURNS, len(ROLE_NAMES))
    kept = ("source", "turn", "role").index(dimension)
    sums: npt.NDArray[np.float64] | IntArray = values.sum(axis=tuple(axis for axis in range(3) if axis != kept))
    return sums
