# SPDX-License-Identifier: Apache-2.0
"""Laws of a plan, for all tables of conversations."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from primus.backends.megatron.context_parallel import WHOLE_SEQUENCES, ContextRank
from primus.backends.megatron.model.attention_plan import AttentionPlan, build_attention_plan, thd_params

CPU = torch.device("cpu")


class Table(NamedTuple):
    """Conversations and padding, in any order, in sequences of the same width."""

    segments: list[list[int]]
    num_sequences: int
    width: int
    num_ranks: int


@st.composite
def tables(draw: st.DrawFn) -> Table:
    num_ranks = draw(st.integers(1, 3))
    width = 2 * num_ranks * draw(st.integers(1, 5))
    num_sequences = draw(st.integers(1, 3))
    segments = []
    for row in range(num_sequences):
        cuts = sorted(draw(st.sets(st.integers(1, width - 1), max_size=5))) if width > 1 else []
        edges = [0, *cuts, width]
        kept = draw(st.lists(st.booleans(), min_size=len(edges) - 1, max_size=len(edges) - 1))
        spans = zip(edges[:-1], edges[1:], kept, strict=True)
        segments += [[row * width + first, row * width + last] for first, last, is_kept in spans if is_kept]
    return Table(segments, num_sequences, width, num_ranks)


def plans_of(table: Table, *, padding_attends: bool = False) -> list[AttentionPlan]:
    """That of each rank."""
    segments_C2 = torch.tensor(table.segments, dtype=torch.int32).reshape(-1, 2)
    return [
        build_attention_plan(
            segments_C2,
            num_sequences=table.num_sequences,
            width=table.width,
            context=ContextRank(rank=rank, size=table.num_ranks),
            device=CPU,
            padding_attends=padding_attends,
        )
        for rank in range(table.num_ranks)
    ]


def seen_by_each_position(table: Table, plans: list[AttentionPlan]) -> dict[int, list[int]]:
    """The positions that each position attends to, read off the plans as a kernel reads them."""
    places_W = [ContextRank(rank=rank, size=table.num_ranks).positions(table.width) for rank in range(len(plans))]
    gathered = np.concatenate(places_W)
    seen = {}
    for plan, positions in zip(plans, places_W, strict=True):
        queries = [row * table.width + place for row in range(table.num_sequences) for place in positions.tolist()]
        if plan.key_places_K is None:
            keys = None
        else:
            places, rows = np.divmod(plan.key_places_K.numpy(), table.num_sequences)
            keys = (gathered[places] + rows * table.width).tolist()
        first, first_key = 0, 0
        for num_queries, num_keys in zip(plan.query_lengths, plan.key_lengths, strict=True):
            own = queries[first : first + num_queries]
            attended = own if keys is None else keys[first_key : first_key + num_keys]
            for number, query in enumerate(own):
                seen[query] = attended[: num_keys - num_queries + number + 1] if num_keys else []
            first, first_key = first + num_queries, first_key + num_keys
        assert first == len(queries)
        assert keys is None or first_key == len(keys)
    return seen


@given(table=tables())
def test_each_position_attends_to_its_conversation_up_to_itself(table: Table) -> None:
    expected: dict[int, list[int]] = {place: [] for place in range(table.num_sequences * table.width)}
    for first, last in table.segments:
        expected.update({place: list(range(first, place + 1)) for place in range(first, last)})
    assert seen_by_each_position(table, plans_of(table)) == expected


@given(table=tables())
def test_padding_that_attends_leaves_no_gap_and_changes_no_conversation(table: Table) -> None:
    with_gaps = seen_by_each_position(table, plans_of(table))
    plans = plans_of(table, padding_attends=True)
    without = seen_by_each_position(table, plans)
    assert all(seen == without[place] for place, seen in with_gaps.items() if seen)
    for plan in plans:
        assert all(plan.key_lengths)
        assert np.diff(plan.query_bounds.numpy()).tolist() == plan.query_lengths
        assert np.diff(plan.key_bounds.numpy()).tolist() == plan.key_lengths
        assert (plan.longest_query, plan.longest_key) == (max(plan.query_lengths), max(plan.key_lengths))
        assert plan.query_bounds.dtype == plan.key_bounds.dtype == torch.int32


@given(num_ranks=st.integers(1, 8), chunk=st.integers(1, 4))
def test_ranks_share_the_positions_and_the_work_of_a_long_conversation(num_ranks: int, chunk: int) -> None:
    width = 2 * num_ranks * chunk
    shares = [ContextRank(rank=rank, size=num_ranks).positions(width) for rank in range(num_ranks)]
    assert sorted(np.concatenate(shares)) == list(range(width))
    assert {int((share + 1).sum()) for share in shares} == {width * (width + 1) // 2 // num_ranks}


def test_transformer_engine_is_told_of_all_positions() -> None:
    plan = plans_of(Table([[0, 3], [5, 8], [8, 16]], 2, 8, 1), padding_attends=True)[0]
    told = thd_params(plan)
    assert told.qkv_format == "thd"
    assert told.cu_seqlens_q.tolist() == told.cu_seqlens_kv.tolist() == [0, 3, 5, 8, 16]
    assert told.max_seqlen_q == told.max_seqlen_kv == 8


@pytest.mark.parametrize("segments", [[[0, 15]], [[0, 4], [3, 7]], [[4, 2]], [[5, 9]]])
def test_segments_that_cannot_be_are_refused(segments: list[list[int]]) -> None:
    with pytest.raises(ValueError, match=r"a conversation from \d to \d+, behind \d, of 2 sequences of 7 positions"):
        build_attention_plan(
            torch.tensor(segments, dtype=torch.int32),
            num_sequences=2,
            width=7,
            context=WHOLE_SEQUENCES,
            device=CPU,
        )


def test_a_width_that_ranks_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match="6 positions are not a multiple of 2 x 2 ranks"):
        ContextRank(rank=0, size=2).chunks(6)
