# SPDX-License-Identifier: Apache-2.0
"""Exact counts that can be added up: of whole numbers, and of occurrences with their first places."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

MAX_ORIGINS = 5
"""Places that are kept of each kind of occurrence."""


class Distribution:
    """How often each whole number occurred. Its memory grows with the different numbers, not with how many there are.

    Args:
        counts: How often each number occurred.

    Examples:
        >>> d = Distribution()
        >>> d.add_all([4, 1, 1, 10])
        >>> d.num, d.total, d.mean, d.quantile(0.5), d.max
        (4, 16, 4.0, 1, 10)
    """

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        self.counts: Counter[int] = Counter(counts or {})

    def add(self, value: int, *, times: int = 1) -> None:
        """Count a number."""
        self.counts[int(value)] += times

    def add_all(self, values: Iterable[int]) -> None:
        """Count numbers."""
        self.counts.update(values)

    def merge(self, other: "Distribution") -> None:
        """Add the counts of another one."""
        self.counts.update(other.counts)

    @property
    def num(self) -> int:
        """How many numbers were counted."""
        return self.counts.total()

    @property
    def total(self) -> int:
        """The sum of the numbers."""
        return sum(value * count for value, count in self.counts.items())

    @property
    def mean(self) -> float:
        """The mean; 0 of nothing."""
        return self.total / self.num if self.counts else 0.0

    @property
    def min(self) -> int:
        """The smallest number; 0 of nothing."""
        return min(self.counts, default=0)

    @property
    def max(self) -> int:
        """The largest number; 0 of nothing."""
        return max(self.counts, default=0)

    def quantile(self, share: float) -> int:
        """The smallest counted number that at least this share of the numbers does not exceed.

        Args:
            share: From 0 to 1.

        Returns:
            One of the numbers; 0 of nothing.
        """
        return self.quantiles((share,))[0]

    def quantiles(self, shares: Iterable[float]) -> list[int]:
        """Several quantiles, in one pass over the counts.

        Args:
            shares: From 0 to 1.

        Returns:
            The quantile of each share.
        """
        values, counts = self.arrays()
        if not len(values):
            return [0 for _ in shares]
        reached = np.cumsum(counts)
        # A share such as 0.9 of 10 numbers is 9, although 0.9 * 10 may be a hair above it in binary.
        wanted = [np.ceil(round(share * int(reached[-1]), 9)) for share in shares]
        return [int(values[min(np.searchsorted(reached, want), len(values) - 1)]) for want in wanted]

    def arrays(self) -> tuple[IntArray, IntArray]:
        """The different numbers, ascending, and how often each occurred."""
        values = np.array(sorted(self.counts), dtype=np.int64)
        return values, np.array([self.counts[int(value)] for value in values], dtype=np.int64)


@dataclass(slots=True)
class Occurrences:
    """How often something occurred, and where it did first.

    Attributes:
        num: How often.
        num_conversations: In how many conversations.
        origins: The first places, at most `MAX_ORIGINS`.
    """

    num: int = 0
    num_conversations: int = 0
    origins: list[str] = field(default_factory=list)

    def add(self, origin: str, *, times: int = 1) -> None:
        """Count a conversation in which it occurred."""
        self.num += times
        self.num_conversations += 1
        if len(self.origins) < MAX_ORIGINS:
            self.origins.append(origin)

    def merge(self, other: "Occurrences") -> None:
        """Add what was counted in rows that follow."""
        self.num += other.num
        self.num_conversations += other.num_conversations
        self.origins += other.origins[: MAX_ORIGINS - len(self.origins)]
