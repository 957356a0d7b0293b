# SPDX-License-Identifier: Apache-2.0
"""How much each target counts: the factors of its loss, and what is added to the divisor.

    weight of a token = data set x message x schedule(position of the turn), divided as the normaliser says
    loss of a step    = sum of weight x loss over its tokens / sum of the units of its sequences

Only what the assistant wrote has a weight, so a factor for the role would have one value and does not exist.

N: sequences. K: token spans of all of them. G: trained turns of all conversations, by conversation and message.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

ScheduleKind = Literal["uniform", "last_only", "linear", "exponential"]
LossNormalizer = Literal["token", "turn", "conversation"]
"""What has one vote in the loss: every target, every trained turn, or every conversation."""

_Integers = npt.NDArray[np.signedinteger[Any]]
_Floats = npt.NDArray[np.float64]
# A target's weight never becomes 0 by rounding, for then it would be none.
_SMALLEST_WEIGHT = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnSchedule:
    """How the weight of a turn depends on its position among the conversation's trained turns.

    Counted are the turns that have a target before the schedule is applied: not those with weight 0, and not those that
    truncation left without one. Where only the last turn is supervised there is one turn to count, which is the first
    and the last, and every schedule gives it 1.

    Attributes:
        kind: `uniform` is 1 for all, `last_only` is 1 for the last and 0 for the others, which are context then.
            `linear` rises in equal steps from `start`, which would be the step before the first turn, to 1 at the last.
            `exponential` is `decay` to the power of the number of trained turns behind.
        start: Where `linear` sets out: at least 0 and below 1. No turn has it, so none has weight 0.
        decay: Base of `exponential`, above 0 and below 1.

    Raises:
        ValueError: If a parameter is out of range.

    Examples:
        Four trained turns:

        >>> TurnSchedule(kind="linear").factors(np.arange(4), np.full(4, 4)).tolist()
        [0.25, 0.5, 0.75, 1.0]
        >>> TurnSchedule(kind="linear", start=0.2).factors(np.arange(4), np.full(4, 4)).round(3).tolist()
        [0.4, 0.6, 0.8, 1.0]
        >>> TurnSchedule(kind="exponential", decay=0.5).factors(np.arange(4), np.full(4, 4)).tolist()
        [0.125, 0.25, 0.5, 1.0]
        >>> TurnSchedule(kind="last_only").factors(np.arange(4), np.full(4, 4)).tolist()
        [0.0, 0.0, 0.0, 1.0]
    """

    kind: ScheduleKind = "uniform"
    start: float = 0.0
    decay: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.start < 1:
            raise ValueError(f"start is {self.start}, not at least 0 and below 1")
        if not 0 < self.decay < 1:
            raise ValueError(f"decay is {self.decay}, not between 0 and 1")

    def factors(self, positions: _Integers, num_turns: _Integers) -> _Floats:
        """The factor of turns.

        Args:
            positions: Position of each among the trained turns of its conversation, from 0.
            num_turns: How many trained turns its conversation has.

        Returns:
            The factors, in the same shape.
        """
        behind: _Floats = (num_turns - 1 - positions).astype(np.float64)
        factors: _Floats = np.ones(np.shape(positions), dtype=np.float64)
        if self.kind == "last_only":
            factors[behind > 0] = 0
        elif self.kind == "linear":
            # Counted from the end, so that the last turn has exactly 1.
            factors -= (1 - self.start) * (behind / num_turns)
        elif self.kind == "exponential":
            # A turn far from the end counts next to nothing, but it counts.
            factors *= np.maximum(self.decay**behind, _SMALLEST_WEIGHT)
        return factors


class WeighedSpans(NamedTuple):
    """The loss of sequences.

    Attributes:
        weights_K: Factor of the loss of each token of a span; 0 where it is context only.
        num_units_N: What each sequence adds to the divisor of the loss.
        num_targets_N: Tokens of each sequence that are trained.
    """

    weights_K: npt.NDArray[np.float32]
    num_units_N: npt.NDArray[np.int32]
    num_targets_N: npt.NDArray[np.int32]


def weigh(
    *,
    token_spans_K2: _Integers,
    turns_K: _Integers,
    weights_K: npt.NDArray[np.floating[Any]],
    span_bounds_N1: _Integers,
    conversation_N: _Integers,
    schedule: TurnSchedule,
    normalizer: LossNormalizer = "token",
    dataset_weight: float = 1.0,
) -> WeighedSpans:
    """Weigh the targets of many sequences.

    With `token`, the units are targets and weights stay as they are. With `turn`, each weight is divided by the targets
    of its turn, and the units are trained turns. With `conversation`, it is divided by the targets of its conversation,
    of which the first sequence with a target has the one unit. So a turn, or a conversation, in which every factor is 1
    has weights that sum to 1 however long it is. Factors scale the loss and not the divisor.

    Args:
        token_spans_K2: Tokens `[first, last)` of each span, counted from its sequence's first.
        turns_K: Index of the message that a span belongs to, in the whole conversation.
        weights_K: Weight of each span's message; 0 where it is context only.
        span_bounds_N1: Where the spans of each sequence begin; shape [N + 1].
        conversation_N: A number for each sequence; equal for the sequences of one conversation.
        schedule: Factor of a turn by its position.
        normalizer: What has one vote in the loss.
        dataset_weight: Factor of the whole data set.

    Returns:
        Weights, units and targets. A token of a span with a weight above 0 is a target, unless it is the first of its
        sequence, which nothing predicts. A sequence without a target has no unit.

    Raises:
        ValueError: If `dataset_weight` is not a finite number above 0.

    Examples:
        A conversation with turns 1 and 3, of 2 and 4 targets, and one with a turn of 3 targets and weight 0.5.

        >>> spans = dict(token_spans_K2=np.array([[3, 5], [8, 12], [2, 5]]), turns_K=np.array([1, 3, 1]),
        ...     weights_K=np.float32([1, 1, 0.5]), span_bounds_N1=np.array([0, 2, 3]), conversation_N=np.array([0, 1]))
        >>> weights_K, num_units_N, num_targets_N = weigh(**spans, schedule=TurnSchedule())
        >>> weights_K.tolist(), num_units_N.tolist(), num_targets_N.tolist()
        ([1.0, 1.0, 0.5], [6, 3], [6, 3])

        With the weight that rises to 1 at the last turn, the first of two counts half. Per turn, that is shared by its
        2 tokens; the sums of the turns are 0.5, 1 and 0.5, and there are 3 of them.

        >>> weights_K, num_units_N, _ = weigh(**spans, schedule=TurnSchedule(kind="linear"), normalizer="turn")
        >>> weights_K.astype(float).round(4).tolist(), num_units_N.tolist()
        ([0.25, 0.25, 0.1667], [2, 1])

        Per conversation, 6 targets share the vote of the first, and 3 that of the second.

        >>> weights_K, num_units_N, _ = weigh(**spans, schedule=TurnSchedule(), normalizer="conversation")
        >>> weights_K.astype(float).round(4).tolist(), num_units_N.tolist()
        ([0.1667, 0.1667, 0.1667], [1, 1])
    """
    if not (math.isfinite(dataset_weight) and dataset_weight > 0):
        raise ValueError(f"dataset_weight is {dataset_weight}, not a finite number above 0")
    num_sequences = len(span_bounds_N1) - 1
    sequence_K = np.repeat(np.arange(num_sequences), np.diff(span_bounds_N1))
    conversation_K = np.unique(conversation_N, return_inverse=True)[1][sequence_K]
    length_K = (token_spans_K2[:, 1] - np.maximum(token_spans_K2[:, 0], 1)).clip(min=0).astype(np.int64)
    factor_K = np.where(weights_K > 0, weights_K.astype(np.float64), 0.0)
    scheduled = (factor_K > 0) & (length_K > 0)
    factor_K[scheduled] *= _turn_factors(conversation_K[scheduled], turns_K[scheduled], schedule)
    factor_K *= dataset_weight
    is_target_K = (factor_K > 0) & (length_K > 0)
    targets_K = np.where(is_target_K, length_K, 0)
    num_targets_N = _sums(sequence_K, targets_K, num_sequences)
    if normalizer == "token":
        num_units_N = num_targets_N
    else:
        votes_K = conversation_K if normalizer == "conversation" else _numbered_turns(conversation_K, turns_K)
        factor_K /= np.maximum(_sums(votes_K, targets_K, int(votes_K.max(initial=-1)) + 1)[votes_K], 1)
        first_K = np.flatnonzero(is_target_K)[np.unique(votes_K[is_target_K], return_index=True)[1]]
        num_units_N = np.bincount(sequence_K[first_K], minlength=num_sequences)
    smallest_K = np.where(factor_K > 0, _SMALLEST_WEIGHT, 0.0)
    return WeighedSpans(
        np.maximum(factor_K, smallest_K).astype(np.float32),
        num_units_N.astype(np.int32),
        num_targets_N.astype(np.int32),
    )


def _turn_factors(conversation_K: _Integers, turns_K: _Integers, schedule: TurnSchedule) -> _Floats:
    """The schedule's factor for each of the spans that have targets."""
    if schedule.kind == "uniform" or not len(turns_K):
        return np.ones(len(turns_K), dtype=np.float64)
    numbers_K = _numbered_turns(conversation_K, turns_K)
    _, first_G, turn_K = np.unique(numbers_K, return_index=True, return_inverse=True)
    conversation_G = conversation_K[first_G]
    num_turns = np.bincount(conversation_G)
    positions_G = np.arange(len(conversation_G)) - (np.cumsum(num_turns) - num_turns)[conversation_G]
    return schedule.factors(positions_G, num_turns[conversation_G])[turn_K]


def _numbered_turns(conversation_K: _Integers, turns_K: _Integers) -> npt.NDArray[np.int64]:
    """A number for each turn of each conversation, in their order; numbers without a turn may lie between."""
    return conversation_K.astype(np.int64) * (int(turns_K.max(initial=0)) + 1) + turns_K


def _sums(groups: _Integers, values: _Integers, num_groups: int) -> npt.NDArray[np.int64]:
    # float64 counts exactly up to 2**53.
    return np.bincount(groups, weights=values, minlength=num_groups).astype(np.int64)
