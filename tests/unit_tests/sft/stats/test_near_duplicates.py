# SPDX-License-Identifier: Apache-2.0
"""Near duplicates: what is found is true, and next to nothing is missed."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from primus.chat import Conversation, Message, ToolCall
from primus.sft.stats.near_duplicates import candidate_pairs, comparer, repeated
from primus.sft.stats.shingles import (
    MAX_HASHES,
    MAX_MISSED,
    Sketcher,
    choose_bands,
    compared_text,
    conversation_shingles,
    jaccard,
    shingles,
)  # fmt: skip
from primus.sft.stats.writing import words

SETS = st.sets(st.integers(0, 30), max_size=15)


def as_array(members: set[int]) -> Any:
    return np.array(sorted(members), dtype=np.uint64)


@given(SETS, SETS)
def test_the_jaccard_index_is_that_of_the_sets(a: set[int], b: set[int]) -> None:
    expected = len(a & b) / len(a | b) if a | b else 1.0
    assert jaccard(as_array(a), as_array(b)) == expected


def test_shingles_are_the_different_runs_of_five_words() -> None:
    assert len(shingles(words("a b c d e f g"))) == 3
    assert len(shingles(words("a a a a a a a a a"))) == 1
    assert len(shingles(words("a b"))) == 1
    assert len(shingles(words(""))) == 0
    assert jaccard(shingles(words("a b c d e f")), shingles(words("b c d e f g"))) == pytest.approx(1 / 3)
    assert jaccard(shingles(words("a b c d e")), shingles(words("e d c b a"))) == 0
    assert jaccard(shingles(words("a b")), shingles(words("a b c"))) == 0


def test_a_character_is_a_word_where_no_spaces_are_written() -> None:
    assert len(shingles(words("今天天气很好我们去"))) == 5


@pytest.mark.parametrize("similarity", [0.5, 0.8, 0.9])
def test_a_sketch_finds_pairs_as_often_as_the_formula_says(similarity: float) -> None:
    bands = choose_bands(0.8)
    sketcher = Sketcher(bands)
    random = np.random.default_rng(5)
    num, num_common, num_pairs = 200, 0, 400
    num_common = round(2 * num * similarity / (1 + similarity))
    found = 0
    for _ in range(num_pairs):
        pool = np.unique(random.integers(0, 2**63, 4 * num, dtype=np.uint64))[: 2 * num - num_common]
        random.shuffle(pool)
        a, b = np.sort(pool[:num]), np.sort(np.concatenate([pool[:num_common], pool[num:]]))
        assert jaccard(a, b) == pytest.approx(similarity, abs=0.01)
        found += bool((sketcher.sketch(a) == sketcher.sketch(b)).any())
    expected = bands.candidate_probability(jaccard(a, b))
    # Five standard deviations.
    assert abs(found / num_pairs - expected) <= 5 * (expected * (1 - expected) / num_pairs) ** 0.5 + 1e-9


@given(st.floats(0.05, 1.0))
def test_a_pair_at_the_threshold_is_hardly_missed(threshold: float) -> None:
    bands = choose_bands(threshold)
    assert bands.num_bands * bands.rows <= MAX_HASHES
    assert 1 - bands.candidate_probability(threshold) <= MAX_MISSED


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=8))
def test_candidates_are_those_that_share_a_band_with_the_first_of_a_bucket(rows: list[tuple[int, int]]) -> None:
    indices = [3 * i + 1 for i in range(len(rows))]
    expected = set()
    for band in range(2):
        for i, row in enumerate(rows):
            first = next(j for j, other in enumerate(rows) if other[band] == row[band])
            if first != i:
                expected.add((indices[i], indices[first]))
    pairs = candidate_pairs(np.array(rows, dtype=np.uint64), np.array(indices))
    assert pairs.tolist() == [[first, other] for other, first in sorted(expected)]


def test_clusters_are_what_exact_comparisons_connect() -> None:
    base = set(range(20))
    sets = {0: base, 2: base | {100}, 3: set(range(50, 70)), 5: base | {101, 102}, 6: set(range(50, 69)), 9: {7}}
    pairs = np.array([[0, 2], [0, 3], [0, 5], [3, 6], [0, 9]])
    with comparer(pairs, threshold=0.9) as comparing:
        assert comparing.wanted == [0, 2, 3, 5, 6, 9]
        for index in comparing.wanted:
            comparing.add(index, as_array(sets[index]))
        clusters = comparing.clusters()
    assert clusters.members == ((0, 2, 5), (3, 6))
    assert clusters.min_jaccard == 20 / 22
    # 0 and 9 differ in size by more than the threshold allows, which needs no comparison.
    assert clusters.num_comparisons == 4


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=10))
def test_a_copy_points_to_the_first_of_its_kind(rows: list[tuple[int, int]]) -> None:
    hashes = np.array(rows, dtype=np.uint64).reshape(-1, 2)
    assert repeated(hashes).tolist() == [rows.index(row) for row in rows]


def test_what_many_conversations_share_is_not_compared() -> None:
    call = ToolCall("add", '{"a": 1}')
    messages = (
        Message("system", "You are a helpful assistant."),
        Message("user", "What is it?"),
        Message("assistant", "Let me add.", reasoning="Hm", tool_calls=(call,)),
        Message("tool", "2"),
    )
    conversation = Conversation(messages, tools=('{"name": "add"}',))
    assert compared_text(conversation).split("\n") == ["", "What is it?", "Hm", "Let me add.", 'add {"a": 1}', "", "2"]
    assert jaccard(conversation_shingles(conversation), conversation_shingles(Conversation(messages[1:]))) == 1.0
