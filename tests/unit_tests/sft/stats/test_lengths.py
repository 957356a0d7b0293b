# SPDX-License-Identifier: Apache-2.0
"""What a sequence length would do is what truncation does, counted."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from primus.sft.encoding import EncodedConversation
from primus.sft.stats.counts import LengthCounts
from primus.sft.stats.lengths import SequenceLength, candidates, coverage, histogram, weigh
from primus.sft.stats.packing_estimate import best_fit_decreasing
from primus.sft.stats.token_counts import ConversationTokens, trained_turns
from primus.sft.truncation import truncate_right


@st.composite
def conversations(draw: st.DrawFn) -> EncodedConversation:
    """Turns of content and end of turn, with context between them and weights of 0 among them."""
    position, spans, turns, is_end, weights = draw(st.integers(0, 3)), [], [], [], []
    for turn in range(draw(st.integers(1, 4))):
        weight = draw(st.sampled_from([0.0, 1.0, 0.5]))
        for end_of_turn in (False, True):
            length = draw(st.integers(0, 4))
            spans.append((position, position + length))
            turns.append(turn)
            is_end.append(end_of_turn)
            weights.append(0.0 if end_of_turn and draw(st.booleans()) else weight)
            position += length
        position += draw(st.integers(0, 3))
    tokens_T = np.arange(max(position, 1) + draw(st.integers(0, 3)))
    return EncodedConversation(
        tokens_T, np.array(spans), np.array(turns), np.array(is_end), np.array(weights, dtype=np.float32), "a:1"
    )


def count(encoded: list[EncodedConversation]) -> LengthCounts:
    lengths = LengthCounts()
    for e in encoded:
        lengths.add(ConversationTokens(len(e.tokens_T), e.num_targets, 0, (), trained_turns(e)))
    return lengths


@given(st.lists(conversations(), max_size=6), st.integers(1, 40))
def test_the_losses_are_those_of_truncation(encoded: list[EncodedConversation], seq_length: int) -> None:
    usable = [e for e in encoded if e.num_targets]
    cut = [truncate_right(e, max_tokens=seq_length + 1) for e in usable]
    weighed = weigh(count(encoded), seq_length)
    assert weighed.num_overlong == sum(len(e.tokens_T) - 1 > seq_length for e in usable)
    assert weighed.right_lost_targets == sum(e.num_targets - c.num_targets for e, c in zip(usable, cut, strict=True))
    assert weighed.right_lost_turns == sum(
        len(trained_turns(e)) - len(trained_turns(c)) for e, c in zip(usable, cut, strict=True)
    )
    assert weighed.right_lost_conversations == sum(not c.num_targets for c in cut)
    dropped = [e for e in usable if len(e.tokens_T) - 1 > seq_length]
    assert weighed.drop_lost_targets == sum(e.num_targets for e in dropped)
    assert weighed.drop_lost_turns == sum(len(trained_turns(e)) for e in dropped)
    kept = [len(c.tokens_T) - 1 for c in cut if c.num_targets]
    assert weighed.num_sequences == len(kept)
    assert weighed.padding_share == pytest.approx(1 - sum(kept) / (len(kept) * seq_length) if kept else 0)
    fitting = [len(e.tokens_T) - 1 for e in usable if len(e.tokens_T) - 1 <= seq_length]
    num_packs = best_fit_decreasing(Counter(fitting), capacity=seq_length).num_bins + len(kept) - len(fitting)
    assert weighed.packed_sequences == num_packs
    assert weighed.packed_padding_share == pytest.approx(1 - sum(kept) / (num_packs * seq_length) if kept else 0)


def test_a_small_example_by_hand() -> None:
    """Two conversations of 11 and 5 tokens; of the first, turns end behind tokens 4 and 10."""
    first = EncodedConversation(
        np.arange(11),
        np.array([[2, 4], [7, 10]]),
        np.array([1, 3]),
        np.array([False, False]),
        np.ones(2, dtype=np.float32),
        "a:1",
    )
    second = EncodedConversation(
        np.arange(5), np.array([[3, 5]]), np.array([1]), np.array([False]), np.ones(1, dtype=np.float32), "a:2"
    )
    assert weigh(count([first, second]), 8) == SequenceLength(
        seq_length=8, num_overlong=1, overlong_share=0.5,
        right_lost_turns=1, right_lost_targets=3, right_lost_target_share=3 / 7, right_lost_conversations=0,
        drop_lost_turns=2, drop_lost_targets=5, drop_lost_target_share=5 / 7,
        num_sequences=2, padding_share=1 - 7 / 16, packed_sequences=2, packed_padding_share=1 - 7 / 16,
    )  # fmt: skip
    assert weigh(count([first, second]), 9).right_lost_turns == 0
    assert weigh(count([first, second]), 2).right_lost_conversations == 2


def test_candidates_are_powers_of_two_up_to_the_first_that_cuts_nothing() -> None:
    lengths = LengthCounts()
    lengths.conversations.add(5000)
    assert candidates(lengths) == [1024, 2048, 4096, 8192]
    assert candidates(lengths, asked=[3000]) == [1024, 2048, 3000, 4096, 8192]
    assert candidates(lengths, asked=[3000, 10], default=False) == [10, 3000]
    lengths.conversations.add(8192)
    assert candidates(lengths)[-1] == 8192
    assert weigh(lengths, candidates(lengths)[-1]).num_overlong == 0


def test_no_conversation_gives_no_division_by_zero() -> None:
    empty = LengthCounts()
    assert coverage(empty) == []
    assert histogram({}) == []
    assert [weigh(empty, length).packed_sequences for length in candidates(empty)] == [0]


@given(st.lists(conversations(), min_size=1, max_size=6))
def test_coverage_grows_to_all_of_it(encoded: list[EncodedConversation]) -> None:
    lengths = count(encoded)
    points = coverage(lengths)
    assert points == sorted(points)
    for length, conversations_share, targets_share in points:
        weighed = weigh(lengths, length)
        assert conversations_share == pytest.approx(1 - weighed.overlong_share)
        assert targets_share == pytest.approx(1 - weighed.right_lost_target_share)
    if lengths.conversations.num:
        assert points[-1][1:] == (1.0, 1.0)


@given(st.dictionaries(st.integers(1, 100_000), st.integers(1, 9), max_size=30))
def test_bins_hold_everything_once_and_follow_each_other(counts: dict[int, int]) -> None:
    bins = histogram(counts)
    assert sum(count for _, _, count in bins) == sum(counts.values())
    for low, high, count in bins:
        assert count == sum(n for value, n in counts.items() if low <= value < high)
    assert all(left[1] == right[0] for left, right in pairwise(bins))
