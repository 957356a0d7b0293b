# SPDX-License-Identifier: Apache-2.0
"""Several sources as one endless stream of items: which source comes when, and which of its items.

N: items of all sources. S: sources. M: items of an epoch of the mixture. C: positions of a chunk.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from primus.sft.permutation import Permutation, random_keys

IntArray = npt.NDArray[np.int64]

# In each so many positions of an epoch every source has its share.
_CHUNK = 1024
# The order of a source's items uses small even numbers; this is none of them.
_SOURCES_STREAM = 2**63


@dataclass(frozen=True, slots=True)
class SourceShare:
    """How much of a source is in an epoch of the mixture.

    Attributes:
        num_items: Items of the source, at least 1.
        epochs: How many times each comes in an epoch of the mixture, on average: 2.0 is twice each, 0.5 half of them.

    Raises:
        ValueError: If there are no items, or `epochs` is not a number above 0.
    """

    num_items: int
    epochs: float = 1.0

    def __post_init__(self) -> None:
        if self.num_items < 1:
            raise ValueError("a source without items has no share of a mixture")
        if not 0 < self.epochs < math.inf:
            raise ValueError(f"a source is taken {self.epochs} times per epoch; it must be a number above 0")

    @property
    def items_per_epoch(self) -> int:
        """Items of this source in an epoch of the mixture: the product, rounded, and at least 1."""
        return max(round(self.epochs * self.num_items), 1)


def epochs_from_weights(num_items: Sequence[int], weights: Sequence[float]) -> list[float]:
    """The epochs that give each source a share of the mixture's items in proportion to its weight.

    The source with the greatest weight per item is passed once in an epoch of the mixture, the others less than once:
    no item comes twice in an epoch. Since a pass goes on in the next epoch, none is left out either.

    Args:
        num_items: Items of each source.
        weights: Above 0, one for each source; only their proportions count.

    Returns:
        The `epochs` of each source, at most 1.

    Raises:
        ValueError: If there are not as many weights as sources, a source is empty, or a weight is not a number above 0.

    Examples:
        A source of 100 and one of 900 items, half and half: 100 of each.

        >>> epochs_from_weights([100, 900], [0.5, 0.5])
        [1.0, 0.1111111111111111]
    """
    if not num_items or len(num_items) != len(weights):
        raise ValueError(f"{len(weights)} weights for {len(num_items)} sources; each source has one")
    for source, (num, weight) in enumerate(zip(num_items, weights, strict=True)):
        if num < 1 or not 0 < weight < math.inf:
            raise ValueError(
                f"source {source} has {num} items and the weight {weight}; a source has items and a weight above 0,"
                " or it is left out"
            )
    per_item = [weight / num for num, weight in zip(num_items, weights, strict=True)]
    return [value / max(per_item) for value in per_item]


class Mixture:
    """The endless stream of the items of several sources, a pure function of the shares and the seed.

    Items are counted through all sources. An epoch has `items_per_epoch` of each. In every chunk of 1,024 positions
    each source has its share but for a few items; which positions these are is shuffled. A source's items come in a
    seeded order, each once before any of them comes again, also across epochs of the mixture; each pass has an order of
    its own. A mixture of one source with 1.0 epochs is just these passes.

    Args:
        sources: The shares.
        seed: Another seed gives another order.

    Raises:
        ValueError: If there are no sources.

    Attributes:
        items_per_epoch: Items of an epoch of the mixture, M.
    """

    def __init__(self, sources: Sequence[SourceShare], *, seed: int) -> None:
        if not sources:
            raise ValueError("there are no sources to mix")
        seeds = random_keys(len(sources), seed=seed, stream=_SOURCES_STREAM).tolist()
        firsts = accumulate((source.num_items for source in sources[:-1]), initial=0)
        self._pattern_seed = seeds[0]
        self._passes = [
            _Passes(source.num_items, first=first, seed=source_seed)
            for source, first, source_seed in zip(sources, firsts, [seed, *seeds[1:]], strict=True)
        ]
        self._per_epoch = [source.items_per_epoch for source in sources]
        self.items_per_epoch = sum(self._per_epoch)

    def items(self, epoch: int, start: int, stop: int) -> IntArray:
        """The items at the positions `[start, stop)` of an epoch.

        Args:
            epoch: Which epoch of the mixture.
            start: First position in it.
            stop: Position behind the last, at most `items_per_epoch`.

        Returns:
            Shape [stop - start].
        """
        if len(self._passes) == 1:
            return self._passes[0].draws(epoch * self.items_per_epoch + start, stop - start)
        first_chunk, last_chunk = start // _CHUNK, -(-stop // _CHUNK)
        pattern = np.concatenate(
            [np.zeros(0, dtype=np.int64), *(self._pattern(epoch, chunk) for chunk in range(first_chunk, last_chunk))]
        )
        before = start - first_chunk * _CHUNK
        drawn = self._drawn(epoch, first_chunk * _CHUNK) + np.bincount(pattern[:before], minlength=len(self._passes))
        pattern = pattern[before : before + stop - start]
        items = np.empty(len(pattern), dtype=np.int64)
        for source, passes in enumerate(self._passes):
            places = np.flatnonzero(pattern == source)
            earlier = epoch * self._per_epoch[source] + int(drawn[source])
            items[places] = passes.draws(earlier, len(places))
        return items

    def _pattern(self, epoch: int, chunk: int) -> IntArray:
        """Which source each position of a chunk is for; shape [C], less at the end of the epoch."""
        start, stop = chunk * _CHUNK, min((chunk + 1) * _CHUNK, self.items_per_epoch)
        counts_S = self._drawn(epoch, stop) - self._drawn(epoch, start)
        keys = random_keys(stop - start, seed=self._pattern_seed + 1 + chunk, stream=epoch)
        return np.repeat(np.arange(len(counts_S)), counts_S)[np.argsort(keys, kind="stable")]

    def _drawn(self, epoch: int, position: int) -> IntArray:
        """How many of the first positions of an epoch are for each source; shape [S].

        Each source takes its part of what the sources before it left over, rounded down. That never falls, always adds
        up, and is exact at the end. Where in the epoch the roundings happen is drawn by seed.
        """
        offsets_S = random_keys(len(self._per_epoch), seed=self._pattern_seed, stream=epoch).tolist()
        counts, left, left_per_epoch = [], position, self.items_per_epoch
        for per_epoch, offset in zip(self._per_epoch, offsets_S, strict=True):
            count = (left * per_epoch + offset % left_per_epoch) // left_per_epoch
            counts.append(count)
            left -= count
            left_per_epoch -= per_epoch
        return np.array(counts, dtype=np.int64)


class _Passes:
    """The items of a source, pass after pass, each in another order."""

    def __init__(self, num_items: int, *, first: int, seed: int) -> None:
        self._num = num_items
        self._first = first
        self._seed = seed
        self._orders: dict[int, Permutation] = {}

    def draws(self, start: int, num: int) -> IntArray:
        parts = [np.zeros(0, dtype=np.int64)]
        stop = start + num
        while start < stop:
            number, offset = divmod(start, self._num)
            end = min(self._num, offset + stop - start)
            parts.append(self._first + self._order(number)[np.arange(offset, end)])
            start += end - offset
        return np.concatenate(parts)

    def _order(self, number: int) -> Permutation:
        if number not in self._orders:
            # A batch touches few passes; small orders are sorted, so the newest two are kept.
            self._orders = {n: order for n, order in self._orders.items() if n == number - 1}
            self._orders[number] = Permutation(self._num, seed=self._seed, stream=2 * number)
        return self._orders[number]
