# SPDX-License-Identifier: Apache-2.0
"""Which sequences make up a step: a pure function of the lengths, the seed and the step.

N: sequences of the data set. G: sequences of a global batch.
"""

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


class SequenceOrder:
    """The endless stream of sequences, cut into global batches.

    Epochs follow each other without a gap, so a batch may hold the end of one and the beginning of the next. Nothing is
    stored between steps: resuming at step k costs as much as being there.

    Args:
        lengths_N: Positions of each sequence.
        seed: Another seed gives another order.
        global_batch_size: Sequences of a step, G.
        length_bucket: Sequences of similar length come together: inside blocks of about this many (a multiple of G)
            they are sorted by length, cut into batches, and the batches are shuffled. 0 shuffles freely.

    Raises:
        ValueError: If there are no sequences.

    Examples:
        >>> order = SequenceOrder(np.array([3, 1, 2]), seed=1, global_batch_size=2)
        >>> three_batches = np.concatenate([order.global_batch(step) for step in range(3)])
        >>> sorted(three_batches[:3].tolist()), sorted(three_batches[3:].tolist())
        ([0, 1, 2], [0, 1, 2])
    """

    def __init__(self, lengths_N: IntArray, *, seed: int, global_batch_size: int, length_bucket: int = 0) -> None:
        if not len(lengths_N):
            raise ValueError("there are no sequences to put in order")
        self._lengths_N = np.asarray(lengths_N, dtype=np.int64)
        self._seed = seed
        self._batch_size = global_batch_size
        self._bucket = -(-length_bucket // global_batch_size) * global_batch_size
        self._epochs: dict[int, IntArray] = {}

    def global_batch(self, step: int) -> IntArray:
        """The indices of the sequences of a step, counted from 0; shape [G]."""
        num = len(self._lengths_N)
        position = step * self._batch_size
        parts: list[IntArray] = []
        missing = self._batch_size
        while missing:
            epoch, offset = divmod(position, num)
            part = self.epoch(epoch)[offset : offset + missing]
            parts.append(part)
            position += len(part)
            missing -= len(part)
        return np.concatenate(parts)

    def epoch(self, epoch: int) -> IntArray:
        """The indices of one pass over the data, each once; shape [N]."""
        if epoch not in self._epochs:
            # A batch touches few epochs; keeping the newest two avoids sorting again for each batch.
            self._epochs = {e: order for e, order in self._epochs.items() if e == epoch - 1}
            self._epochs[epoch] = self._build(epoch)
        return self._epochs[epoch]

    def _build(self, epoch: int) -> IntArray:
        num = len(self._lengths_N)
        order = np.argsort(random_keys(num, seed=self._seed, stream=2 * epoch), kind="stable")
        if not self._bucket:
            return order
        # Batches begin at multiples of G in the endless stream, which in this epoch is after `head` sequences.
        head = -epoch * num % self._batch_size
        parts = [order[:head]]
        for start in range(head, num, self._bucket):
            block = order[start : start + self._bucket]
            block = block[np.argsort(self._lengths_N[block], kind="stable")]
            parts.append(self._shuffle_batches(block, stream=2 * epoch + 1, salt=start))
        return np.concatenate(parts)

    def _shuffle_batches(self, block: IntArray, *, stream: int, salt: int) -> IntArray:
        whole = len(block) // self._batch_size
        batches = block[: whole * self._batch_size].reshape(whole, self._batch_size)
        keys = random_keys(whole, seed=self._seed + salt, stream=stream)
        # What does not fill a batch stays behind: the next epoch's head completes it.
        return np.concatenate([batches[np.argsort(keys, kind="stable")].reshape(-1), block[whole * self._batch_size :]])


def random_keys(num: int, *, seed: int, stream: int) -> npt.NDArray[np.uint64]:
    """Pseudo-random 64-bit keys, the same with every version of numpy.

    splitmix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators") of the index.

    Args:
        num: How many keys.
        seed: Any integer.
        stream: Another stream of the same seed is independent of it.

    Returns:
        Shape [num]; the first keys do not depend on `num`.

    Examples:
        >>> random_keys(2, seed=0, stream=0).tolist() == random_keys(3, seed=0, stream=0)[:2].tolist()
        True
    """
    with np.errstate(over="ignore"):
        start = _mix(_mix(np.array([seed % 2**64], dtype=np.uint64)) + np.uint64(stream))
        gamma = np.uint64(0x9E3779B97F4A7C15)
        return _mix(start + gamma * np.arange(1, num + 1, dtype=np.uint64))


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: npt.NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return mixed
