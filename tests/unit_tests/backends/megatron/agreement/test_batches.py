# SPDX-License-Identifier: Apache-2.0
"""The sum over all ranks tells whether those that share a model have read the same, in any layout."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import product
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from megatron.core import parallel_state

from primus.backends.megatron.agreement import batches
from primus.backends.megatron.agreement.batches import agreed_hash, hash_summands
from primus.backends.megatron.data.batches import HASHES

Place = tuple[int, int, int, int]
SIZES = st.tuples(*[st.integers(1, 3)] * 4)
HASH = st.integers(0, HASHES - 1)


@contextmanager
def at(place: Place, sizes: Place) -> Iterator[None]:
    """This process at a place in a layout: replica, stage, context rank, tensor rank."""
    replica, stage, context, tensor = place
    with ExitStack() as stack:
        answers = {
            "get_data_parallel_rank": replica,
            "get_context_parallel_rank": context,
            **{
                f"get_{kind}_parallel_world_size": size
                for kind, size in zip(("pipeline_model", "context", "tensor_model"), sizes[1:], strict=True)
            },
        }
        for name, answer in answers.items():
            stack.enter_context(patch.object(parallel_state, name, lambda answer=answer: answer))
        stack.enter_context(patch.object(batches, "has_losses", lambda: stage == sizes[1] - 1 and tensor == 0))
        yield


def places(sizes: Place) -> Iterator[Place]:
    """All places of a layout."""
    replicas, stages, contexts, tensors = map(range, sizes)
    return product(replicas, stages, contexts, tensors)


def agreed(hashes: Mapping[Place, int], sizes: Place) -> int | None:
    """What the ranks come to, each with what it has read."""
    summands = []
    for place, own in hashes.items():
        with at(place, sizes):
            summands.append(hash_summands(own))
    with at((0, 0, 0, 0), sizes):
        return agreed_hash([sum(column) for column in zip(*summands, strict=True)])


@given(SIZES, st.data())
def test_ranks_that_read_the_same_agree_on_the_sum_of_the_replicas(sizes: Place, data: st.DataObject) -> None:
    of_replicas = data.draw(st.lists(HASH, min_size=sizes[0], max_size=sizes[0]))
    hashes = {place: of_replicas[place[0]] for place in places(sizes)}
    assert agreed(hashes, sizes) == sum(of_replicas) % HASHES


@given(SIZES.filter(lambda sizes: sizes[1] * sizes[2] * sizes[3] > 1), st.data())
def test_one_rank_that_reads_something_else_is_noticed(sizes: Place, data: st.DataObject) -> None:
    of_replicas = data.draw(st.lists(HASH, min_size=sizes[0], max_size=sizes[0]))
    hashes = {place: of_replicas[place[0]] for place in places(sizes)}
    odd = data.draw(st.sampled_from(list(hashes)))
    # A hash is drawn evenly from all numbers; another one that differs by a multiple of half of them would be bad luck.
    hashes[odd] = (hashes[odd] + data.draw(st.integers(1, 2**60))) % HASHES
    assert agreed(hashes, sizes) is None


@pytest.mark.parametrize("who", [((0, 0, 0, 0), (1, 0, 0, 0)), ((0, 0, 0, 1), (1, 0, 0, 1))])
def test_ranks_that_read_each_others_sequences_are_noticed(who: tuple[Place, Place]) -> None:
    sizes = (2, 1, 1, 2)
    hashes = {place: 1000 + place[0] for place in places(sizes)}
    first, second = who
    hashes[first], hashes[second] = hashes[second], hashes[first]
    assert agreed(hashes, sizes) is None
