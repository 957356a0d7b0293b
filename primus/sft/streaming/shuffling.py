# SPDX-License-Identifier: Apache-2.0
"""A random order of things that come one after another, with a bounded number of them held back."""

from collections.abc import Sequence
from typing import Generic, TypeVar

from primus.sft.permutation import random_keys

Item = TypeVar("Item")

_DRAWS_AT_ONCE = 4096
_KEY_BITS = 64


class ShuffleBuffer(Generic[Item]):
    """Things that wait; for each that comes beyond the size, a random one of them leaves.

    What leaves when depends on the seed, the epoch and the things before, and on nothing else.

    Args:
        size: How many may wait; 0 lets each through at once.
        seed: Another seed gives another order.

    Attributes:
        num_draws: Random numbers that were drawn in this epoch.

    Examples:
        >>> buffer = ShuffleBuffer[int](3, seed=1)
        >>> left = [buffer.add(number) for number in range(6)]
        >>> left[:3], sorted(filter(None, [*left[3:], *buffer.drain()])) == [1, 2, 3, 4, 5]
        ([None, None, None], True)
    """

    def __init__(self, size: int, *, seed: int) -> None:
        self._size = size
        self._seed = seed
        self._waiting: list[Item] = []
        self._keys: list[int] = []
        self.start(epoch=0)

    @property
    def waiting(self) -> Sequence[Item]:
        """What waits."""
        return self._waiting

    def start(self, *, epoch: int, num_draws: int = 0, waiting: Sequence[Item] = ()) -> None:
        """Begin an epoch, or go on in one.

        Args:
            epoch: Its number.
            num_draws: Random numbers that were drawn in it.
            waiting: What waits.
        """
        self._epoch = epoch
        self.num_draws = num_draws
        self._waiting = list(waiting)
        if num_draws % _DRAWS_AT_ONCE:
            self._draw_keys(num_draws // _DRAWS_AT_ONCE)

    def add(self, item: Item) -> Item | None:
        """Take one; gives the one that leaves, or None while the buffer fills."""
        if not self._size:
            return item
        if len(self._waiting) < self._size:
            self._waiting.append(item)
            return None
        place = self._place()
        leaving, self._waiting[place] = self._waiting[place], item
        return leaving

    def drain(self) -> list[Item]:
        """All that wait, in random order; then none does."""
        leaving = []
        while self._waiting:
            place = self._place()
            self._waiting[place], self._waiting[-1] = self._waiting[-1], self._waiting[place]
            leaving.append(self._waiting.pop())
        return leaving

    def _place(self) -> int:
        chunk, offset = divmod(self.num_draws, _DRAWS_AT_ONCE)
        if not offset:
            self._draw_keys(chunk)
        self.num_draws += 1
        return (self._keys[offset] * len(self._waiting)) >> _KEY_BITS

    def _draw_keys(self, chunk: int) -> None:
        # Epochs shuffle their files with the streams below 2^32.
        stream = ((self._epoch + 1) << 32) + chunk
        self._keys = random_keys(_DRAWS_AT_ONCE, seed=self._seed, stream=stream).tolist()
