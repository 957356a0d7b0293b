# SPDX-License-Identifier: Apache-2.0
"""Which sequences make up a step: a pure function of the lengths, the seed and the step.

N: sequences of the data set. G: sequences of a global batch.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from primus.sft.mixture import Mixture, SourceShare, epochs_from_weights
from primus.sft.permutation import random_keys

__all__ = ["SequenceOrder", "SourceShare", "epochs_from_weights", "random_keys"]

IntArray = npt.NDArray[np.int64]


class SequenceOrder:
    """The endless stream of sequences, cut into global batches.

    Epochs follow each other without a gap, so a batch may hold the end of one and the beginning of the next. Nothing is
    stored between steps and nothing is computed for all sequences: the first step of any run costs as much as any
    other, and resuming at step k as much as being there.

    Args:
        lengths_N: Positions of each sequence; they are looked at only where `length_bucket` asks for it.
        seed: Another seed gives another order.
        global_batch_size: Sequences of a step, G.
        length_bucket: Sequences of similar length come together: inside blocks of about this many (a multiple of G)
            they are sorted by length, cut into batches, and the batches are shuffled. 0 shuffles freely.
        sources: Shares of the sources whose sequences stand one behind another in the data set; None is one source of
            all of them, each once per epoch.

    Raises:
        ValueError: If there are no sequences, the batches are empty, or the sources have more or fewer sequences.

    Attributes:
        sequences_per_epoch: Sequences of an epoch: N, or what the shares of the sources make.

    Examples:
        >>> order = SequenceOrder(np.array([3, 1, 2]), seed=1, global_batch_size=2)
        >>> three_batches = np.concatenate([order.global_batch(step) for step in range(3)])
        >>> sorted(three_batches[:3].tolist()), sorted(three_batches[3:].tolist())
        ([0, 1, 2], [0, 1, 2])

        Sequences 0 and 1 twice in an epoch, and half of the four behind them:

        >>> sources = [SourceShare(2, epochs=2.0), SourceShare(4, epochs=0.5)]
        >>> order = SequenceOrder(np.ones(6, dtype=int), seed=1, global_batch_size=2, sources=sources)
        >>> np.bincount(np.concatenate([order.epoch(0), order.epoch(1)])).tolist()
        [4, 4, 1, 1, 1, 1]
    """

    def __init__(
        self,
        lengths_N: npt.NDArray[np.integer],
        *,
        seed: int,
        global_batch_size: int,
        length_bucket: int = 0,
        sources: Sequence[SourceShare] | None = None,
    ) -> None:
        if not len(lengths_N):
            raise ValueError("there are no sequences to put in order")
        if global_batch_size < 1:
            raise ValueError(f"a global batch of {global_batch_size} sequences; it has at least one")
        shares = [SourceShare(len(lengths_N))] if sources is None else sources
        num_shared = sum(share.num_items for share in shares)
        if num_shared != len(lengths_N):
            raise ValueError(f"the sources have {num_shared} sequences, and there are {len(lengths_N)}")
        self._mixture = Mixture(shares, seed=seed)
        self._lengths_N = lengths_N
        self._seed = seed
        self._batch_size = global_batch_size
        self._bucket = -(-length_bucket // global_batch_size) * global_batch_size
        self._blocks: dict[tuple[int, int], IntArray] = {}
        self.sequences_per_epoch = self._mixture.items_per_epoch

    def global_batch(self, step: int) -> IntArray:
        """The indices of the sequences of a step, counted from 0; shape [G]."""
        position = step * self._batch_size
        parts: list[IntArray] = []
        missing = self._batch_size
        while missing:
            epoch, start = divmod(position, self.sequences_per_epoch)
            part = self._part(epoch, start, start + missing)
            parts.append(part)
            position += len(part)
            missing -= len(part)
        return np.concatenate(parts)

    def epoch(self, epoch: int) -> IntArray:
        """The indices of one pass over the data, each once, or as the shares of the sources say."""
        parts: list[IntArray] = []
        start = 0
        while start < self.sequences_per_epoch:
            parts.append(self._part(epoch, start, self.sequences_per_epoch))
            start += len(parts[-1])
        return np.concatenate(parts)

    def _part(self, epoch: int, start: int, stop: int) -> IntArray:
        """What stands from a position of an epoch on, up to another one or to where it must be asked for again."""
        end = self.sequences_per_epoch
        # Batches begin at multiples of G in the endless stream, which in this epoch is after `head` sequences.
        head = min(-epoch * end % self._batch_size, end)
        if not self._bucket:
            return self._mixture.items(epoch, start, min(stop, end))
        if start < head:
            return self._mixture.items(epoch, start, min(stop, head))
        first = head + (start - head) // self._bucket * self._bucket
        return self._block(epoch, first)[start - first : stop - first]

    def _block(self, epoch: int, first: int) -> IntArray:
        """A block of sequences of similar length, from its first position in the epoch to its end."""
        if (epoch, first) not in self._blocks:
            last = min(first + self._bucket, self.sequences_per_epoch)
            block = self._mixture.items(epoch, first, last)
            block = block[np.argsort(self._lengths_N[block], kind="stable")]
            # A batch lies in one block, unless an epoch ends in it; steps go through a block before they go on.
            self._blocks = {(epoch, first): self._shuffle_batches(block, stream=2 * epoch + 1, salt=first)}
        return self._blocks[epoch, first]

    def _shuffle_batches(self, block: IntArray, *, stream: int, salt: int) -> IntArray:
        whole = len(block) // self._batch_size
        batches = block[: whole * self._batch_size].reshape(whole, self._batch_size)
        keys = random_keys(whole, seed=self._seed + salt, stream=stream)
        # What does not fill a batch stays behind: the next epoch's head completes it.
        return np.concatenate([batches[np.argsort(keys, kind="stable")].reshape(-1), block[whole * self._batch_size :]])
