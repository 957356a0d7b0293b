# SPDX-License-Identifier: Apache-2.0
"""The sequences of a run's steps in numbers: what each data-parallel rank gets of them in a layout.

Legend: N sequences of the data set, K steps that are looked at, G sequences of a global batch, M micro-batches of one
rank in a step, D data-parallel ranks.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from primus.backends.megatron.core.datasets.sft_dataset import SFTDataset
from primus.backends.megatron.planning.flops import attention_pairs
from primus.sft.order import SequenceOrder

IntArray = npt.NDArray[np.int64]

# Steps that are looked at; a longer run goes on like its beginning, since its order is random.
MOST_STEPS = 2000


@dataclass(frozen=True, kw_only=True)
class StepWork:
    """What a step is on average, and what the rank with most to do computes in it."""

    useful_positions: float
    """Positions of all ranks, padding not counted."""
    useful_pairs: float
    """Pairs for attention inside conversations, of all ranks."""
    targets: float
    """Positions that are trained, of all ranks."""
    num_micro_batches: int
    """Forward passes of one rank."""
    slowest_positions: float
    """Positions of the rank that has most, padding included: the others wait for it."""
    slowest_pairs: float
    """Pairs for attention that it computes."""


@dataclass(frozen=True, eq=False)
class Workload:
    """The global batches of a run's steps.

    Attributes:
        positions_KG: Positions of each sequence, padding not counted.
        pairs_KG: Pairs for attention inside its conversations.
        targets_KG: Positions of it that are trained.
        is_packed: Whether sequences hold several conversations, and so have attention inside these only.
        seq_length: Longest sequence that is possible.
    """

    positions_KG: IntArray
    pairs_KG: IntArray
    targets_KG: IntArray
    is_packed: bool
    seq_length: int
    _works: dict[tuple[int, int, int], StepWork] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, data: SFTDataset, order: SequenceOrder, *, num_steps: int) -> "Workload":
        """Look at the steps of a run, of a long one at its first 2000.

        Args:
            data: The training data.
            order: Which sequences make up each step.
            num_steps: Steps of the run.

        Returns:
            Their sequences in numbers.
        """
        batches_KG = np.stack([order.global_batch(step) for step in range(min(num_steps, MOST_STEPS))])
        return cls(
            positions_KG=data.num_positions_N[batches_KG],
            pairs_KG=data.num_pairs_N[batches_KG],
            targets_KG=data.num_targets_N[batches_KG],
            is_packed=data.is_packed,
            seq_length=data.max_seq_length,
        )

    def widths(self, *, micro_batch_size: int, multiple: int) -> IntArray:
        """Positions of each micro-batch: those of its longest sequence, rounded up; shape [K, G / micro_batch_size]."""
        longest = self.positions_KG.reshape(len(self.positions_KG), -1, micro_batch_size).max(axis=2)
        widths: IntArray = np.minimum(self.seq_length, -(-longest // multiple) * multiple)
        return widths

    def padding_share(self, *, micro_batch_size: int, multiple: int) -> float:
        """Share of padding in all micro-batches."""
        num_places = int(self.widths(micro_batch_size=micro_batch_size, multiple=multiple).sum()) * micro_batch_size
        return 1 - int(self.positions_KG.sum()) / num_places

    def work(self, *, micro_batch_size: int, multiple: int, data_parallel_size: int) -> StepWork:
        """Share the steps out among ranks.

        Args:
            micro_batch_size: Sequences of one forward pass.
            multiple: A micro-batch is as wide as its longest sequence, rounded up to this.
            data_parallel_size: Groups of ranks that see different sequences; with the micro-batch size it divides the
                global batch.

        Returns:
            The means over the steps.
        """
        key = (micro_batch_size, multiple, data_parallel_size)
        if key not in self._works:
            self._works[key] = self._work(*key)
        return self._works[key]

    def _work(self, micro_batch_size: int, multiple: int, data_parallel_size: int) -> StepWork:
        num_steps = len(self.positions_KG)
        widths_KMD = self.widths(micro_batch_size=micro_batch_size, multiple=multiple).reshape(
            num_steps, -1, data_parallel_size
        )
        if self.is_packed:
            pairs_KMD = self.pairs_KG.reshape(num_steps, -1, data_parallel_size, micro_batch_size).sum(axis=3)
        else:
            # Attention of one conversation does not know where its padding begins.
            pairs_KMD = micro_batch_size * attention_pairs(widths_KMD)
        positions_KD = micro_batch_size * widths_KMD.sum(axis=1)
        slowest_K = positions_KD.argmax(axis=1)
        rows_K = np.arange(num_steps)
        return StepWork(
            useful_positions=float(self.positions_KG.sum(axis=1).mean()),
            useful_pairs=float(self.pairs_KG.sum(axis=1).mean()),
            targets=float(self.targets_KG.sum(axis=1).mean()),
            num_micro_batches=widths_KMD.shape[1],
            slowest_positions=float(positions_KD[rows_K, slowest_K].mean()),
            slowest_pairs=float(pairs_KMD.sum(axis=1)[rows_K, slowest_K].mean()),
        )
