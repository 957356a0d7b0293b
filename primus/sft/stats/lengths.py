# SPDX-License-Identifier: Apache-2.0
"""What each candidate sequence length would cut, pad and pack."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from primus.sft.stats.counts import LengthCounts
from primus.sft.stats.packing_estimate import best_fit_decreasing

SMALLEST_DEFAULT = 1024
_NUM_POINTS = 120
_FEW_BINS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceLength:
    """What a `seq_length` would do to the conversations that have a target.

    A conversation of T tokens takes T - 1 positions. Cutting on the right keeps it up to the end of its last trained
    turn that is whole, and conversations without such a turn are not trained at all; dropping leaves out all that do
    not fit.

    Attributes:
        seq_length: Positions of a sequence, S.
        num_overlong: Conversations of more than S positions.
        overlong_share: Their share of all.
        right_lost_turns: Assistant turns that lose their targets if overlong conversations are cut.
        right_lost_targets: The targets that they lose.
        right_lost_target_share: Their share of all targets.
        right_lost_conversations: Conversations that have no target left.
        drop_lost_turns: Assistant turns that are lost if overlong conversations are dropped.
        drop_lost_targets: The targets that are lost.
        drop_lost_target_share: Their share of all targets.
        num_sequences: Sequences if each conversation has its own: those that keep a target when cut on the right.
        padding_share: The share of padding in these, each padded to S.
        packed_sequences: Sequences if the same conversations are packed by best-fit decreasing over the whole data set,
            but each that is cut has a sequence of its own.
        packed_padding_share: The share of padding in those.
    """

    seq_length: int
    num_overlong: int
    overlong_share: float
    right_lost_turns: int
    right_lost_targets: int
    right_lost_target_share: float
    right_lost_conversations: int
    drop_lost_turns: int
    drop_lost_targets: int
    drop_lost_target_share: float
    num_sequences: int
    padding_share: float
    packed_sequences: int
    packed_padding_share: float


def weigh(lengths: LengthCounts, seq_length: int) -> SequenceLength:
    """Count exactly what a sequence length would do.

    Args:
        lengths: Conversations by their lengths.
        seq_length: Positions of a sequence.

    Returns:
        The counts.
    """
    all_targets = lengths.targets.total()
    num_overlong = _above(lengths.conversations.counts, seq_length)
    right_targets, drop_targets = _above(lengths.targets_by_end, seq_length), _above(lengths.targets, seq_length)
    left_without = _above(lengths.first_end, seq_length)
    kept = Counter({n: count for n, count in lengths.conversations.counts.items() if n <= seq_length})
    kept[seq_length] += num_overlong - left_without
    num_sequences = kept.total()
    filled = sum(n for end, n in lengths.kept_positions.items() if end <= seq_length)
    packing = best_fit_decreasing({n: count for n, count in kept.items() if count}, capacity=seq_length)
    return SequenceLength(
        seq_length=seq_length,
        num_overlong=num_overlong,
        overlong_share=_share(num_overlong, lengths.conversations.num),
        right_lost_turns=_above(lengths.turns_by_end, seq_length),
        right_lost_targets=right_targets,
        right_lost_target_share=_share(right_targets, all_targets),
        right_lost_conversations=left_without,
        drop_lost_turns=_above(lengths.turns, seq_length),
        drop_lost_targets=drop_targets,
        drop_lost_target_share=_share(drop_targets, all_targets),
        num_sequences=num_sequences,
        padding_share=1 - _share(filled, num_sequences * seq_length) if num_sequences else 0.0,
        packed_sequences=packing.num_bins,
        packed_padding_share=1 - _share(filled, packing.num_bins * seq_length) if packing.num_bins else 0.0,
    )


def candidates(lengths: LengthCounts, *, asked: Iterable[int] = (), default: bool = True) -> list[int]:
    """The sequence lengths to weigh.

    Args:
        lengths: Conversations by their lengths.
        asked: Lengths that the user asks about.
        default: Whether to add the powers of two up to the first that cuts nothing: from 1024, or from an eighth of it
            if that is less.

    Returns:
        The lengths, ascending.

    Examples:
        >>> short = LengthCounts()
        >>> short.conversations.add(150)
        >>> candidates(short, asked=[100])
        [32, 64, 100, 128, 256]
    """
    chosen = set(asked)
    if default:
        last = 1 << max(lengths.conversations.max - 1, 0).bit_length()
        length = max(min(SMALLEST_DEFAULT, last // 8), 1)
        while length <= last:
            chosen.add(length)
            length *= 2
    return sorted(chosen)


def coverage(lengths: LengthCounts, *, num_points: int = _NUM_POINTS) -> list[tuple[int, float, float]]:
    """What sequences of growing length hold.

    Args:
        lengths: Conversations by their lengths.
        num_points: About how many lengths, evenly spaced in their logarithm.

    Returns:
        For each length the share of the conversations that fit whole, and of the targets that cutting on the right
        keeps.
    """
    if not lengths.conversations.counts:
        return []
    low, high = max(lengths.conversations.min, 1), max(lengths.conversations.max, 2)
    points = np.unique(np.geomspace(max(low // 2, 1), high, num_points).round().astype(np.int64))
    held = _cumulative(lengths.conversations.counts, points)
    kept = _cumulative(lengths.targets_by_end, points)
    return [(int(p), float(h), float(k)) for p, h, k in zip(points, held, kept, strict=True)]


def histogram(counts: Mapping[int, int], *, bins_per_octave: int | None = None) -> list[tuple[int, int, int]]:
    """Counts in bins of even width in their logarithm.

    Args:
        counts: How often each number occurred; numbers below 1 stand in the first bin.
        bins_per_octave: Bins from a number to its double; None takes 4, or more where the numbers lie close together.

    Returns:
        `[low, high)` and the count of each bin; the bins follow each other without a gap, from the first that is not
        empty to the last.

    Examples:
        >>> histogram({3: 2, 7: 1, 8: 1}, bins_per_octave=1)
        [(2, 4, 2), (4, 8, 1), (8, 16, 1)]
    """
    if not counts:
        return []
    if bins_per_octave is None:
        spread = math.log2(max(*counts, 1) / max(min(counts), 1))
        bins_per_octave = next((bins for bins in (4, 8) if bins * spread >= _FEW_BINS), 16)
    octaves = max(*counts, 1).bit_length()
    edges = np.unique(
        np.ceil(2 ** (np.arange(octaves * bins_per_octave + 1) / bins_per_octave) - 1e-9).astype(np.int64)
    )
    values = np.maximum(np.array(list(counts), dtype=np.int64), 1)
    sums = np.bincount(
        np.searchsorted(edges, values, side="right") - 1, weights=list(counts.values()), minlength=len(edges) - 1
    )
    filled = np.flatnonzero(sums)
    return [(int(edges[i]), int(edges[i + 1]), int(sums[i])) for i in range(filled[0], filled[-1] + 1)]


def _above(counts: Mapping[int, int], limit: int) -> int:
    return sum(count for value, count in counts.items() if value > limit)


def _cumulative(counts: Mapping[int, int], points: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> list[float]:
    values = np.array(sorted(counts), dtype=np.int64)
    sums = np.concatenate([[0], np.cumsum([counts[int(value)] for value in values])])
    shares: list[float] = (sums[np.searchsorted(values, points, side="right")] / max(sums[-1], 1)).tolist()
    return shares


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
