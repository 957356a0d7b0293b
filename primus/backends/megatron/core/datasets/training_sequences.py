# SPDX-License-Identifier: Apache-2.0
"""Tokenized conversations as training sequences: one each, or several behind one another.

S: positions of a training sequence, `max_seq_length`. N: training sequences of the data set. B: some of them.
C: conversations of a training sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from primus.sft.assembly import Assembler
from primus.sft.dataset import TokenizedDataset
from primus.sft.masking import PackedTargets
from primus.sft.order import SequenceOrder, SourceShare, epochs_from_weights
from primus.sft.packing import Method, PackPlan, pack_sequences
from primus.sft.packing_cache import PACKING, stored_plan
from primus.sft.prepared import PreparedDataset

IntArray = npt.NDArray[np.int64]

# What the loss of data that are of one source is told under.
ONLY_SOURCE = "all"
# Conversations of a training sequence that a message names; the rest is counted.
_MAX_NAMED = 3


@dataclass(frozen=True, slots=True)
class Source:
    """Conversations, and how much of them is in a mixture with others.

    Attributes:
        data: The conversations.
        epochs: How often each training sequence comes in an epoch of the mixture.
        weight: Share of the mixture's training sequences, in proportion to the other sources'; replaces `epochs`.
        name: What its loss is told under.
    """

    data: TokenizedDataset
    epochs: float = 1.0
    weight: float | None = None
    name: str = ONLY_SOURCE


class TrainingSequences(Dataset[dict[str, torch.Tensor]]):
    """The training sequences of tokenized conversations.

    The conversations of a training sequence are of one source.

    Args:
        data: The conversations, or several sources of them.
        packing: `none`: each has a training sequence of its own. `sequential` or `best_fit`: several share one, those
            that follow each other or those that fill it best.
        max_seq_length: Positions of a training sequence, S.
        pad_id: Fills the positions behind the conversations.
        seed: Of `order`.

    Attributes:
        data: The conversations, of all sources.
        source_names: What the loss of each source is told under.
        shares: How many training sequences each source has, and how often they come; None if there is one source.
        packing: How they share training sequences.
        plan: Which conversations share a training sequence; None if each has one of its own.
        max_seq_length: Positions of a training sequence, S.
        seed: Of `order`.
        fingerprint: Hash of the tokens, what is trained of them, and how they are packed.
    """

    def __init__(
        self,
        data: TokenizedDataset | Sequence[Source],
        *,
        packing: Method,
        max_seq_length: int,
        pad_id: int,
        seed: int,
    ) -> None:
        sources = [Source(data)] if isinstance(data, TokenizedDataset) else data
        self.data = TokenizedDataset.joined([source.data for source in sources])
        self.source_names = tuple(source.name for source in sources)
        self.packing = packing
        plans = [
            None if packing == "none" else _plan_of(source.data, capacity=max_seq_length, method=packing)
            for source in sources
        ]
        self.plan = _joined_plan(plans)
        num_items = [len(source.data if plan is None else plan) for source, plan in zip(sources, plans, strict=True)]
        is_mixed = len(sources) > 1 or sources[0].epochs != 1
        self.shares: Sequence[SourceShare] | None = _shares(sources, num_items) if is_mixed else None
        self.max_seq_length = max_seq_length
        self.seed = seed
        facts = [] if packing == "none" else [packing, str(max_seq_length)]
        facts += [f"{share.items_per_epoch}/{share.num_items}" for share in self.shares or ()]
        self.fingerprint = "-".join([self.data.fingerprint, *facts])
        self._assembler = Assembler(self.data, pad_id=pad_id, source_sizes=[len(source.data) for source in sources])

    def __len__(self) -> int:
        return len(self.data) if self.plan is None else len(self.plan)

    @property
    def is_packed(self) -> bool:
        """Whether conversations share training sequences."""
        return self.plan is not None

    @property
    def packing_in_words(self) -> str:
        """How conversations share training sequences, and how full these are; empty if they do not."""
        if self.plan is None:
            return ""
        return f"{len(self.data):,} conversations, {self.packing} packing, fill {100 * self.plan.fill:.2f} %"

    @cached_property
    def num_positions_N(self) -> IntArray:
        """Positions of each training sequence that are not padding."""
        return self._sum_over_packs(self.data.num_tokens_N - 1)

    @cached_property
    def num_pairs_N(self) -> IntArray:
        """Pairs of positions of each training sequence of which one attends to the other."""
        lengths_N = np.asarray(self.data.num_tokens_N, dtype=np.int64)
        return self._sum_over_packs((lengths_N - 1) * lengths_N // 2)

    @cached_property
    def num_targets_N(self) -> IntArray:
        """Positions of each training sequence that are trained."""
        return self._sum_over_packs(self.data.num_targets_N)

    @cached_property
    def num_units_N(self) -> IntArray:
        """What each training sequence adds to the divisor of the loss."""
        return self._sum_over_packs(self.data.num_units_N)

    def _sum_over_packs(self, values: IntArray) -> IntArray:
        return values if self.plan is None else self.plan.num_positions_P(values)

    def num_positions_of(self, indices_B: IntArray) -> IntArray:
        """What `num_positions_N` has for some training sequences, without adding up those of all."""
        if len(indices_B) >= len(self):
            return self.num_positions_N[indices_B]
        return self._assembler.num_positions_of(self._items(indices_B))

    def num_pairs_of(self, indices_B: IntArray) -> IntArray:
        """What `num_pairs_N` has for some training sequences, without adding up those of all."""
        if len(indices_B) >= len(self):
            return self.num_pairs_N[indices_B]
        return self._assembler.num_pairs_of(self._items(indices_B))

    def num_units_of(self, indices_B: IntArray) -> IntArray:
        """What `num_units_N` has for some training sequences, without adding up those of all."""
        if len(indices_B) >= len(self):
            return self.num_units_N[indices_B]
        return self._assembler.num_units_of(self._items(indices_B))

    def _items(self, indices_B: IntArray) -> list[IntArray]:
        """The conversations of some training sequences."""
        plan = self.plan
        return list(indices_B[:, None]) if plan is None else [plan.pack(index) for index in indices_B.tolist()]

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """One training sequence.

        Returns:
            Tensors of shape [S]: `input_ids` and `labels` (int64; `labels[s]` is the token after `input_ids[s]`),
            `loss_mask` (float32, aligned with `labels`; the weight of the target, 0 where there is none) and
            `position_ids` (int64; each conversation begins at 0). Positions behind the conversations hold the
            tokenizer's pad id and are masked. If conversations are packed, also `cu_seqlens` (int32, shape [C + 1]):
            where each conversation begins, and behind them where the last one ends.

        Args:
            index: Which training sequence, from 0.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"training sequence {index} of {len(self)}")
        targets = self.batch(np.array([index]), length=self.max_seq_length)
        tensors = {
            "input_ids": torch.from_numpy(targets.input_ids_BS[0]),
            "labels": torch.from_numpy(targets.labels_BS[0]),
            "loss_mask": torch.from_numpy(targets.loss_mask_BS[0]),
            "position_ids": torch.from_numpy(targets.position_ids_BS[0]),
        }
        if self.plan is not None:
            tensors["cu_seqlens"] = torch.from_numpy(np.append(targets.segments_C2[:, 0], targets.segments_C2[-1, 1]))
        return tensors

    def batch(self, indices_B: IntArray, *, length: int) -> PackedTargets:
        """Several training sequences at once, many times faster than one by one.

        Args:
            indices_B: Which training sequences.
            length: Their positions: `max_seq_length`, or less if none of them is longer.

        Returns:
            The training sequences, in this order.
        """
        return self._assembler.assemble(self._items(indices_B), length=length)

    def origin(self, index: int) -> str:
        """Where the conversations of a training sequence stand, as `file:line`; of many the first ones are named."""
        items = self.items(index)
        named = " + ".join(self.data.origin(item) for item in items[:_MAX_NAMED])
        return f"{named} + {len(items) - _MAX_NAMED} more" if len(items) > _MAX_NAMED else named

    def origins(self, index: int) -> list[str]:
        """Where each conversation of a training sequence stands, as `file:line`, in their order in it."""
        return [self.data.origin(item) for item in self.items(index)]

    def items(self, index: int) -> list[int]:
        """The conversations of a training sequence, as indices of `data`."""
        items: list[int] = [index] if self.plan is None else self.plan.pack(index).tolist()
        return items

    def order(self, *, global_batch_size: int, length_bucket: int = 0) -> SequenceOrder:
        """Which sequences make up each step."""
        return SequenceOrder(
            self.num_positions_N if length_bucket else np.zeros(len(self), dtype=np.int8),
            seed=self.seed,
            global_batch_size=global_batch_size,
            length_bucket=length_bucket,
            sources=self.shares,
        )


def _shares(sources: Sequence[Source], num_items: Sequence[int]) -> tuple[SourceShare, ...]:
    epochs = [source.epochs for source in sources]
    weights = [source.weight for source in sources if source.weight is not None]
    if weights:
        epochs = epochs_from_weights(num_items, weights)
    return tuple(SourceShare(num, epochs=each) for num, each in zip(num_items, epochs, strict=True))


def _joined_plan(plans: Sequence[PackPlan | None]) -> PackPlan | None:
    """One plan of the plans of sources that stand behind one another."""
    whole = [plan for plan in plans if plan is not None]
    if len(whole) < 2:
        return whole[0] if whole else None
    first_items = np.cumsum([0, *(len(plan.items_N) for plan in whole)])
    return PackPlan(
        np.concatenate([plan.items_N + first for plan, first in zip(whole, first_items, strict=False)]),
        np.concatenate([[0], *(plan.bounds_P1[1:] + first for plan, first in zip(whole, first_items, strict=False))]),
        fill=sum(plan.fill * len(plan) for plan in whole) / sum(map(len, whole)),
    )


def _plan_of(data: TokenizedDataset, *, capacity: int, method: Method) -> PackPlan:
    def lengths_N() -> IntArray:
        return data.num_tokens_N - 1

    if not isinstance(data, PreparedDataset):
        return pack_sequences(lengths_N(), capacity=capacity, method=method)
    return stored_plan(
        lengths_N,
        num_sequences=len(data),
        capacity=capacity,
        method=method,
        fingerprint=data.fingerprint,
        folder=data.folder / PACKING,
    )
