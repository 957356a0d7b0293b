# SPDX-License-Identifier: Apache-2.0
"""From packs of sequences to the arrays of a batch, at the speed of copying memory.

What is done for each token is done by numpy; Python's part is a few steps per conversation.

B: packs of a batch. S: positions of each. C: conversations in them.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from primus.sft.masking import BoolArray, FloatArray, Int32Array, IntArray, PackedTargets, packed_targets
from primus.sft.sequences import SequenceShards
from primus.sft.target_groups import span_groups


class _Views(NamedTuple):
    """A shard without the class of memory maps, whose slices cost several times as much."""

    tokens_T: Int32Array
    token_bound: Callable[[int], int]
    token_spans_K2: Int32Array
    turns_K: Int32Array
    is_end_K: BoolArray
    weights_K: FloatArray
    span_bound: Callable[[int], int]
    num_units: Callable[[int], int]


class Assembler:
    """Puts conversations of a data set behind one another.

    It may be used by several threads at once.

    Args:
        data: The conversations.
        pad_id: Fills the positions behind them.
        source_sizes: How many of the conversations each source has, in their order; without any there is one source.
    """

    def __init__(self, data: SequenceShards, *, pad_id: int, source_sizes: Sequence[int] = ()) -> None:
        self._data = data
        self._pad_id = pad_id
        self._source_bounds = np.cumsum(source_sizes[:-1], dtype=np.int64)
        self._views: dict[int, _Views] = {}

    def assemble(self, packs: Sequence[IntArray], *, length: int) -> PackedTargets:
        """The training sequences of packs.

        Args:
            packs: Indices of the conversations of each pack, in their order in it.
            length: Positions of each training sequence, S.

        Returns:
            The training sequences, one per pack.

        Raises:
            ValueError: If the conversations of a pack have more than `length` positions.
        """
        located = self._located(packs)
        tokens: list[Int32Array] = []
        places: list[int] = []
        spans: list[Int32Array] = []
        weights: list[FloatArray] = []
        turns: list[Int32Array] = []
        is_end: list[BoolArray] = []
        for row, pack in enumerate(packs):
            place = row * length
            for views, local in islice(located, len(pack)):
                tokens_T = views.tokens_T[views.token_bound(local) : views.token_bound(local + 1)]
                pieces = slice(views.span_bound(local), views.span_bound(local + 1))
                tokens.append(tokens_T)
                places.append(place)
                spans.append(views.token_spans_K2[pieces])
                weights.append(views.weights_K[pieces])
                turns.append(views.turns_K[pieces])
                is_end.append(views.is_end_K[pieces])
                place += len(tokens_T) - 1
            if place > (row + 1) * length:
                raise ValueError(f"a pack has {place - row * length} positions, and a sequence {length}")
        num_spans = [len(weights_K) for weights_K in weights]
        return packed_targets(
            tokens,
            places=places,
            token_spans_K2=np.concatenate(spans),
            weights_K=np.concatenate(weights),
            num_spans=num_spans,
            num_rows=len(packs),
            length=length,
            pad_id=self._pad_id,
            groups_K=span_groups(
                np.concatenate(turns),
                np.concatenate(is_end),
                num_spans=num_spans,
                sources_C=np.searchsorted(self._source_bounds, np.concatenate(packs), "right"),
            ),
        )

    def num_positions_of(self, packs: Sequence[IntArray]) -> IntArray:
        """Positions of each pack that are not padding; nothing is read of other packs."""
        located = self._located(packs)
        return np.array(
            [
                sum(
                    views.token_bound(local + 1) - views.token_bound(local) - 1
                    for views, local in islice(located, len(pack))
                )
                for pack in packs
            ],
            dtype=np.int64,
        )

    def num_pairs_of(self, packs: Sequence[IntArray]) -> IntArray:
        """Pairs of positions of each pack of which one attends to the other; nothing is read of other packs."""
        located = self._located(packs)
        return np.array(
            [
                sum(
                    (length - 1) * length // 2
                    for length in (
                        views.token_bound(local + 1) - views.token_bound(local)
                        for views, local in islice(located, len(pack))
                    )
                )
                for pack in packs
            ],
            dtype=np.int64,
        )

    def num_units_of(self, packs: Sequence[IntArray]) -> IntArray:
        """What each pack adds to the divisor of the loss; nothing is read of other packs."""
        located = self._located(packs)
        return np.array(
            [sum(views.num_units(local) for views, local in islice(located, len(pack))) for pack in packs],
            dtype=np.int64,
        )

    def _located(self, packs: Sequence[IntArray]) -> Iterator[tuple[_Views, int]]:
        """The shard of each conversation of some packs, and its index there."""
        items_C = np.concatenate(packs)
        numbers_C = np.searchsorted(self._data.shard_bounds, items_C, "right") - 1
        locals_C = items_C - self._data.shard_bounds[numbers_C]
        views_C = [self._views.get(number) or self._view(number) for number in numbers_C.tolist()]
        return iter(zip(views_C, locals_C.tolist(), strict=True))

    def _view(self, number: int) -> _Views:
        # Threads may make the same views twice, and either will do.
        shard = self._data.shards[number]
        views = self._views[number] = _Views(
            tokens_T=np.asarray(shard.tokens_T),
            token_bound=np.asarray(shard.token_bounds_N1).item,
            token_spans_K2=np.asarray(shard.token_spans_K2),
            turns_K=np.asarray(shard.turns_K),
            is_end_K=np.asarray(shard.is_end_K),
            weights_K=np.asarray(shard.weights_K),
            span_bound=np.asarray(shard.span_bounds_N1).item,
            num_units=np.asarray(shard.num_units_N).item,
        )
        return views
