# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from primus.sft.target_groups import GROUPS_PER_SOURCE, NUM_TURNS, ROLE_NAMES, TURN_NAMES, by_dimension, span_groups

# For each sequence: its source, and the spans of each of its turns, of which some may be ends.
SEQUENCES = st.lists(
    st.tuples(st.integers(0, 3), st.lists(st.lists(st.booleans(), min_size=1, max_size=3), max_size=14)),
    min_size=1,
    max_size=5,
)


@given(SEQUENCES)
def test_a_group_is_the_place_of_the_turn_in_its_sequence_the_part_and_the_source(
    sequences: list[tuple[int, list[list[bool]]]],
) -> None:
    turns: list[int] = []
    is_end: list[bool] = []
    expected: list[int] = []
    for source, spans_of_turns in sequences:
        for number, parts in enumerate(spans_of_turns):
            for part in parts:
                turns.append(1 + 2 * number)
                is_end.append(part)
                expected.append(source * GROUPS_PER_SOURCE + min(number, NUM_TURNS - 1) * len(ROLE_NAMES) + part)
    found = span_groups(
        np.array(turns, dtype=np.int64),
        np.array(is_end, dtype=np.bool_),
        num_spans=[sum(map(len, spans_of_turns)) for _, spans_of_turns in sequences],
        sources_C=np.array([source for source, _ in sequences], dtype=np.int64),
    )
    assert found.tolist() == expected


def test_the_turns_behind_the_eighth_stand_together() -> None:
    groups_K = span_groups(np.arange(12), np.zeros(12, dtype=np.bool_), num_spans=[12], sources_C=np.array([0]))
    counts = by_dimension(np.bincount(groups_K, minlength=GROUPS_PER_SOURCE), "turn")
    assert dict(zip(TURN_NAMES, counts.tolist(), strict=True)) == {**dict.fromkeys("12345678", 1), "9+": 4}


@pytest.mark.parametrize("dimension", ["turn", "role", "source"])
def test_what_is_told_apart_adds_up_to_the_whole(dimension: str) -> None:
    values_G = np.random.default_rng(0).integers(0, 1000, 3 * GROUPS_PER_SOURCE)
    sums = by_dimension(values_G, dimension)  # type: ignore[arg-type]
    assert len(sums) == {"turn": NUM_TURNS, "role": len(ROLE_NAMES), "source": 3}[dimension]
    assert sums.sum() == values_G.sum()
