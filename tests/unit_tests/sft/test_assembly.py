# SPDX-License-Identifier: Apache-2.0
"""Conversations behind one another against the same conversations alone."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from primus.sft.assembly import Assembler
from primus.sft.encoding import EncodedConversation
from primus.sft.masking import next_token_targets, packed_targets
from primus.sft.sequences import SequenceArrays, SequenceShards
from primus.sft.target_groups import GROUPS_PER_SOURCE

PAD = 3


@st.composite
def conversations(draw: st.DrawFn) -> EncodedConversation:
    """Tokens that are often `PAD`, spans that may be empty, touch each other or begin at the first token."""
    tokens = draw(st.lists(st.integers(0, 5), min_size=1, max_size=12))
    edges = sorted(draw(st.lists(st.integers(0, len(tokens)), max_size=8)))
    spans = np.array(edges[: len(edges) // 2 * 2], dtype=np.int64).reshape(-1, 2)
    weights = draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=len(spans), max_size=len(spans)))
    return EncodedConversation(
        tokens_T=np.array(tokens),
        token_spans_K2=spans,
        turns_K=np.arange(len(spans)),
        is_end_K=np.zeros(len(spans), dtype=np.bool_),
        weights_K=np.array(weights, dtype=np.float32),
        origin="a.jsonl:1",
    )


def shards_of(conversations: list[EncodedConversation], *, cuts: list[int]) -> SequenceShards:
    edges = [0, *sorted(min(cut, len(conversations)) for cut in cuts), len(conversations)]
    parts = [conversations[first:last] for first, last in pairwise(edges)]
    return SequenceShards(
        [SequenceArrays.of_conversations(part, content_hashes=[bytes(16)] * len(part)) for part in parts]
    )


def groups_of(conversation: EncodedConversation, *, source: int) -> list[int]:
    """The group of each target, token by token; each span is a turn of its own, and none is an end."""
    groups = []
    for token in range(1, len(conversation.tokens_T)):
        for number, (first, last) in enumerate(conversation.token_spans_K2.tolist()):
            if first <= token < last and conversation.weights_K[number] > 0:
                groups.append(source * GROUPS_PER_SOURCE + 2 * number)
    return groups


@given(st.lists(conversations(), min_size=1, max_size=9), st.lists(st.integers(0, 9), max_size=3), st.data())
def test_a_conversation_in_a_pack_has_the_targets_that_it_has_alone(
    alone: list[EncodedConversation], cuts: list[int], data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(alone))))
    num_packs = data.draw(st.integers(1, len(alone)))
    packs = [np.array(order[number::num_packs], dtype=np.int64) for number in range(num_packs)]
    longest = max(sum(len(alone[item].tokens_T) - 1 for item in pack) for pack in packs)
    length = max(longest, 1) + data.draw(st.integers(0, 3))
    num_first = data.draw(st.integers(0, len(alone)))
    sources = [num_first, len(alone) - num_first]
    found = Assembler(shards_of(alone, cuts=cuts), pad_id=PAD, source_sizes=sources).assemble(packs, length=length)
    segments = iter(found.segments_C2.tolist())
    groups: list[int] = []
    for row, pack in enumerate(packs):
        place = 0
        for item in pack:
            num_positions = len(alone[item].tokens_T) - 1
            here = slice(place, place + num_positions)
            expected = next_token_targets(alone[item].tokens_T, alone[item].weights_T, length=num_positions, pad_id=PAD)
            assert found.input_ids_BS[row, here].tolist() == expected.input_ids_S.tolist()
            assert found.labels_BS[row, here].tolist() == expected.labels_S.tolist()
            assert found.loss_mask_BS[row, here].tolist() == expected.loss_mask_S.tolist()
            assert found.position_ids_BS[row, here].tolist() == list(range(num_positions))
            assert next(segments) == [row * length + place, row * length + place + num_positions]
            groups += groups_of(alone[item], source=int(item >= num_first))
            place += num_positions
        assert (found.input_ids_BS[row, place:] == PAD).all()
        assert (found.labels_BS[row, place:] == PAD).all()
        assert not found.loss_mask_BS[row, place:].any()
    assert (found.loss_mask_BS > 0).sum() == sum(one.num_targets for one in alone)
    assert found.groups_N.tolist() == groups


def test_the_targets_are_those_that_one_reads_off() -> None:
    tokens = [np.array([5, 6, 7, PAD]), np.array([8, PAD, 9])]
    found = packed_targets(
        tokens,
        places=[1, 6],
        token_spans_K2=np.array([[0, 2], [3, 4], [1, 3]]),
        weights_K=np.array([1, 0.5, 2], dtype=np.float32),
        num_spans=[2, 1],
        num_rows=2,
        length=5,
        pad_id=PAD,
    )
    assert found.input_ids_BS.tolist() == [[PAD, 5, 6, 7, PAD], [PAD, 8, PAD, PAD, PAD]]
    assert found.labels_BS.tolist() == [[PAD, 6, 7, PAD, PAD], [PAD, PAD, 9, PAD, PAD]]
    # Token 5 is in a span, but nothing predicts it; a target that is the pad token stays one.
    assert found.loss_mask_BS.tolist() == [[0, 1, 0, 0.5, 0], [0, 2, 2, 0, 0]]
    assert found.position_ids_BS.tolist() == [[0, 0, 1, 2, 3], [0, 0, 1, 2, 3]]
    assert found.segments_C2.tolist() == [[1, 4], [6, 8]]
    assert found.groups_N.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ([0, 2], "3 positions from 2 on, behind 3, do not fit in 2 x 8"),
        ([0, 6], "3 positions from 6 on"),
        ([0, 14], "3 positions from 14 on"),
        ([4, 0], "3 positions from 0 on, behind 7"),
    ],
)
def test_conversations_that_overlap_or_stick_out_are_refused(places: list[int], message: str) -> None:
    nothing = np.zeros((0, 2), dtype=np.int64)
    weights = np.zeros(0, dtype=np.float32)
    with pytest.raises(ValueError, match=message):
        packed_targets(
            [np.arange(4), np.arange(4)],
            places=places,
            token_spans_K2=nothing,
            weights_K=weights,
            num_spans=[0, 0],
            num_rows=2,
            length=8,
            pad_id=0,
        )


def test_a_conversation_without_tokens_and_spans_that_overlap_are_refused() -> None:
    def targets(tokens: npt.NDArray[np.int64], spans: list[list[int]]) -> None:
        packed_targets(
            [tokens],
            places=[0],
            token_spans_K2=np.array(spans).reshape(-1, 2),
            weights_K=np.ones(len(spans), dtype=np.float32),
            num_spans=[len(spans)],
            num_rows=1,
            length=8,
            pad_id=0,
        )

    with pytest.raises(ValueError, match="-1 positions from 0 on"):
        targets(np.arange(0), [])
    with pytest.raises(ValueError, match="negative"):
        targets(np.arange(6), [[1, 4], [3, 5]])
    targets(np.arange(6), [[1, 4], [4, 5]])


def test_a_pack_that_is_too_long_is_refused() -> None:
    ten = EncodedConversation(
        tokens_T=np.arange(11),
        token_spans_K2=np.array([[5, 11]]),
        turns_K=np.array([1]),
        is_end_K=np.array([False]),
        weights_K=np.ones(1, dtype=np.float32),
        origin="a.jsonl:1",
    )
    assembler = Assembler(shards_of([ten, ten], cuts=[]), pad_id=0)
    with pytest.raises(ValueError, match="a pack has 20 positions, and a sequence 19"):
        assembler.assemble([np.array([0]), np.array([0, 1])], length=19)
    assert assembler.assemble([np.array([0, 1])], length=20).loss_mask_BS.sum() == 12


def test_arrays_mapped_from_files_give_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    num = 40
    lengths = rng.integers(2, 30, num)
    some = [
        EncodedConversation(
            tokens_T=rng.integers(0, 99, length),
            token_spans_K2=np.array([[length // 2, length]]),
            turns_K=np.array([1]),
            is_end_K=np.array([False]),
            weights_K=np.ones(1, dtype=np.float32),
            origin=f"a.jsonl:{n}",
        )
        for n, length in enumerate(lengths)
    ]
    whole = shards_of(some, cuts=[17])
    mapped = []
    for number, shard in enumerate(whole.shards):
        arrays = {}
        for name in SequenceArrays.__dataclass_fields__:
            np.save(tmp_path / f"{number}-{name}.npy", getattr(shard, name))
            arrays[name] = np.load(tmp_path / f"{number}-{name}.npy", mmap_mode="r")
        mapped.append(SequenceArrays(**arrays))
    packs = list(rng.permutation(num).reshape(10, 4))
    results = [Assembler(data, pad_id=0).assemble(packs, length=128) for data in (whole, SequenceShards(mapped))]
    for ours, theirs in zip(*results, strict=True):
        assert type(theirs) is np.ndarray
        assert np.array_equal(ours, theirs)
