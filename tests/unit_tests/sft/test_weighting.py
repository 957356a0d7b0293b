# SPDX-License-Identifier: Apache-2.0
"""Schedules and normalisers, against one conversation after another in plain Python."""

import math
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from primus.sft.encoding import EncodedConversation
from primus.sft.sequences import SequenceArrays
from primus.sft.weighting import LossNormalizer, ScheduleKind, TurnSchedule, WeighedSpans, weigh


@dataclass(frozen=True)
class Span:
    """A piece of a turn, of a number of tokens."""

    turn: int
    first: int
    last: int
    weight: float

    @property
    def num_targets(self) -> int:
        return max(self.last - max(self.first, 1), 0) if self.weight else 0


Sequence = tuple[int, list[Span]]  # number of the conversation, and the spans


def weighed(
    sequences: list[Sequence],
    schedule: TurnSchedule,
    normalizer: LossNormalizer = "token",
    dataset_weight: float = 1.0,
) -> WeighedSpans:
    spans = [span for _, of_sequence in sequences for span in of_sequence]
    return weigh(
        token_spans_K2=np.array([(s.first, s.last) for s in spans], dtype=np.int32).reshape(-1, 2),
        turns_K=np.array([s.turn for s in spans], dtype=np.int32),
        weights_K=np.array([s.weight for s in spans], dtype=np.float32),
        span_bounds_N1=np.cumsum([0, *(len(of_sequence) for _, of_sequence in sequences)]),
        conversation_N=np.array([conversation for conversation, _ in sequences], dtype=np.int64),
        schedule=schedule,
        normalizer=normalizer,
        dataset_weight=dataset_weight,
    )


def naive(
    sequences: list[Sequence], schedule: TurnSchedule, normalizer: LossNormalizer, dataset_weight: float
) -> tuple[list[list[float]], list[int], list[int]]:
    """Weights of the spans, units and targets of each sequence."""
    turns: dict[int, list[int]] = {}
    for conversation, spans in sequences:
        trained = {span.turn for span in spans if span.num_targets}
        turns[conversation] = sorted({*turns.get(conversation, []), *trained})

    def factor(conversation: int, turn: int) -> float:
        order = turns[conversation]
        if turn not in order:
            return 1.0
        place, num = order.index(turn), len(order)
        if schedule.kind == "linear":
            return schedule.start + (1 - schedule.start) * (place + 1) / num
        if schedule.kind == "exponential":
            return math.pow(schedule.decay, num - 1 - place)
        return 1.0 if schedule.kind == "uniform" or place == num - 1 else 0.0

    scheduled = [
        (c, [(s, s.weight * factor(c, s.turn) * dataset_weight if s.num_targets else s.weight * dataset_weight)
             for s in spans])
        for c, spans in sequences
    ]  # fmt: skip
    targets = [sum(s.num_targets for s, w in spans if w) for _, spans in scheduled]
    if normalizer == "token":
        return [[w for _, w in spans] for _, spans in scheduled], targets, targets

    def key(conversation: int, span: Span) -> tuple[int, ...]:
        return (conversation, span.turn) if normalizer == "turn" else (conversation,)

    of_key: dict[tuple[int, ...], int] = {}
    for c, pairs in scheduled:
        for span, w in pairs:
            of_key[key(c, span)] = of_key.get(key(c, span), 0) + (span.num_targets if w else 0)
    units: list[int] = []
    seen: set[tuple[int, ...]] = set()
    for c, pairs in scheduled:
        new = {key(c, span) for span, w in pairs if w and span.num_targets} - seen
        seen |= new
        units.append(len(new))
    return [[w / (of_key[key(c, s)] or 1) for s, w in pairs] for c, pairs in scheduled], units, targets


@st.composite
def data_sets(draw: st.DrawFn) -> list[Sequence]:
    """Conversations of some turns, each in one sequence or in windows that train each turn once."""
    sequences: list[Sequence] = []
    for conversation in draw(st.lists(st.integers(0, 99), max_size=5, unique=True)):
        turns = draw(st.lists(st.integers(0, 9), max_size=5, unique=True).map(sorted))
        weights = {turn: draw(st.sampled_from([0.0, 0.25, 1.0, 1.0, 2.0])) for turn in turns}
        cuts = sorted(draw(st.lists(st.integers(0, len(turns)), max_size=2)))
        for first, last in zip([0, *cuts], [*cuts, len(turns)], strict=True):
            spans: list[Span] = []
            at = draw(st.integers(0, 2))
            for place, turn in enumerate(turns[:last]):
                for is_end in (False, True):
                    length = draw(st.integers(0, 4))
                    weight = weights[turn] if place >= first and not (is_end and draw(st.booleans())) else 0.0
                    spans.append(Span(turn, at, at + length, weight))
                    at += length
                at += draw(st.integers(0, 1))
            sequences.append((conversation, spans))
    return sequences


schedules = st.one_of(
    st.sampled_from([TurnSchedule(), TurnSchedule(kind="last_only")]),
    st.builds(lambda start: TurnSchedule(kind="linear", start=start), st.floats(0, 0.99)),
    st.builds(lambda decay: TurnSchedule(kind="exponential", decay=decay), st.floats(0.01, 0.99)),
)
normalizers = st.sampled_from(get_args(LossNormalizer))


@given(sequences=data_sets(), schedule=schedules, normalizer=normalizers, dataset_weight=st.sampled_from([1.0, 0.3]))
def test_weights_are_those_of_one_conversation_after_another(
    sequences: list[Sequence], schedule: TurnSchedule, normalizer: LossNormalizer, dataset_weight: float
) -> None:
    weights_K, num_units_N, num_targets_N = weighed(sequences, schedule, normalizer, dataset_weight)
    weights, units, targets = naive(sequences, schedule, normalizer, dataset_weight)
    assert weights_K.dtype == np.float32
    assert weights_K.tolist() == pytest.approx([w for of_sequence in weights for w in of_sequence], rel=1e-6)
    assert num_units_N.tolist() == units
    assert num_targets_N.tolist() == targets


@given(sequences=data_sets(), schedule=schedules)
def test_every_trained_turn_has_the_vote_of_its_weight(sequences: list[Sequence], schedule: TurnSchedule) -> None:
    plain, units, _ = weighed(sequences, schedule)
    weights_K, units, _ = weighed(sequences, schedule, "turn")
    spans = [(c, span) for c, of_sequence in sequences for span in of_sequence]
    votes: dict[tuple[int, int], float] = {}
    factors: dict[tuple[int, int], float] = {}
    for (c, span), weight, factor in zip(spans, weights_K, plain, strict=True):
        if factor and span.num_targets:
            votes[c, span.turn] = votes.get((c, span.turn), 0) + float(weight) * span.num_targets
            factors[c, span.turn] = float(factor)
    assert votes == pytest.approx(factors, rel=1e-6)
    assert units.sum() == len(votes)


@given(sequences=data_sets())
def test_every_conversation_has_one_vote_where_all_weights_are_1(sequences: list[Sequence]) -> None:
    ones = [(c, [Span(s.turn, s.first, s.last, float(s.weight > 0)) for s in spans]) for c, spans in sequences]
    weights_K, units, _ = weighed(ones, TurnSchedule(), "conversation")
    sums: dict[int, float] = {}
    spans = [(c, span) for c, of_sequence in ones for span in of_sequence]
    for (c, span), weight in zip(spans, weights_K, strict=True):
        sums[c] = sums.get(c, 0) + float(weight) * span.num_targets
    with_targets = {c for c, span in spans if span.num_targets}
    assert {c: total for c, total in sums.items() if total} == pytest.approx(dict.fromkeys(with_targets, 1), rel=1e-6)
    assert units.sum() == len(with_targets)


def test_windows_of_one_conversation_count_their_turns_through() -> None:
    first = [Span(1, 2, 4, 1.0), Span(3, 6, 8, 1.0)]
    second = [Span(3, 2, 4, 0.0), Span(5, 6, 16, 1.0), Span(7, 18, 20, 1.0)]
    windows = [(4, first), (4, second)]
    linear = TurnSchedule(kind="linear")
    assert weighed(windows, linear).weights_K.tolist() == [0.25, 0.5, 0.0, 0.75, 1.0]
    assert weighed([(4, first), (5, second)], linear).weights_K.tolist() == [0.5, 1.0, 0.0, 0.5, 1.0]
    assert weighed(windows, linear, "conversation").num_units_N.tolist() == [1, 0], "one vote for both windows"
    last = weighed(windows, TurnSchedule(kind="last_only"), "conversation")
    assert last.num_targets_N.tolist() == [0, 2]
    assert last.num_units_N.tolist() == [0, 1], "the first sequence with a target has the unit"
    assert last.weights_K.tolist() == [0, 0, 0, 0, 0.5]


def test_turns_that_truncation_or_the_data_left_without_targets_are_not_counted() -> None:
    turns = [Span(1, 2, 4, 1.0), Span(3, 6, 8, 0.0), Span(5, 10, 12, 1.0), Span(7, 14, 14, 1.0)]
    assert weighed([(0, turns)], TurnSchedule(kind="exponential", decay=0.5)).weights_K[[0, 2]].tolist() == [0.5, 1]


def test_one_trained_turn_has_weight_1_in_every_schedule() -> None:
    for kind in get_args(ScheduleKind):
        assert weighed([(0, [Span(1, 2, 4, 1.0)])], TurnSchedule(kind=kind)).weights_K.tolist() == [1.0]


def test_a_target_stays_one_however_far_it_is_from_the_last() -> None:
    turns = [Span(2 * i + 1, 3 * i + 1, 3 * i + 3, 1.0) for i in range(300)]
    weights_K, units, targets = weighed([(0, turns)], TurnSchedule(kind="exponential", decay=0.5), "turn")
    assert (weights_K > 0).all()
    assert (units.tolist(), targets.tolist()) == ([300], [600])


def test_the_first_token_of_a_sequence_has_no_vote() -> None:
    weights_K, units, targets = weighed([(0, [Span(0, 0, 3, 1.0)])], TurnSchedule(), "turn")
    assert (weights_K.tolist(), units.tolist(), targets.tolist()) == ([0.5], [1], [2])


def test_targets_are_counted_as_conversations_count_them() -> None:
    encoded = EncodedConversation(
        np.arange(9), np.array([[0, 1], [1, 3], [5, 9]]), np.array([0, 0, 2]), np.array([False, True, False]),
        np.array([1, 0, 0.5], dtype=np.float32), origin="a:1",
    )  # fmt: skip
    arrays = SequenceArrays.of_conversations([encoded], content_hashes=[bytes(16)])
    found = weigh(
        token_spans_K2=arrays.token_spans_K2,
        turns_K=arrays.turns_K,
        weights_K=arrays.weights_K,
        span_bounds_N1=arrays.span_bounds_N1,
        conversation_N=np.zeros(1, dtype=np.int64),
        schedule=TurnSchedule(),
    )
    assert found.num_targets_N.tolist() == [encoded.num_targets] == [4]
    assert found.weights_K.tolist() == arrays.weights_K.tolist()


def test_no_sequences_have_no_weights() -> None:
    for normalizer in get_args(LossNormalizer):
        assert [len(array) for array in weighed([], TurnSchedule(kind="linear"), normalizer)] == [0, 0, 0]
        assert weighed([(0, [])], TurnSchedule(kind="linear"), normalizer).num_units_N.tolist() == [0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 1.0}, "start is 1.0, not at least 0 and below 1"),
        ({"start": float("nan")}, "start is nan, not at least 0 and below 1"),
        ({"decay": 0.0}, "decay is 0.0, not between 0 and 1"),
        ({"decay": 1.0}, "decay is 1.0, not between 0 and 1"),
    ],
)
def test_parameters_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TurnSchedule(kind="linear", **options)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_a_data_set_without_weight_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match=r"dataset_weight is .*, not a finite number above 0"):
        weighed([(0, [])], TurnSchedule(), dataset_weight=weight)
