# SPDX-License-Identifier: Apache-2.0
"""From sketches to clusters of near duplicates.

Conversations that share a band stand in one bucket. Each is compared with the first of its bucket, by the exact
Jaccard index of their shingles, so the number of comparisons is at most one per conversation and band however large
the buckets are. A cluster is what these comparisons connect. Shingles wait for their comparisons in a temporary file.

N: conversations. B: bands. P: pairs.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import numpy as np
import numpy.typing as npt

from primus.sft.stats.shingles import jaccard
from primus.sft.stats.writing import HashArray

IntArray = npt.NDArray[np.int64]


def candidate_pairs(bands_NB: HashArray, indices_N: IntArray) -> IntArray:
    """The pairs that are to be compared.

    Args:
        bands_NB: The hashes of each conversation's bands.
        indices_N: The index of each conversation, ascending.

    Returns:
        Pairs `(first of a bucket, another of it)`, shape [P, 2], each once, ordered by the second and then the first.

    Examples:
        >>> candidate_pairs(np.uint64([[1, 5], [2, 6], [1, 6]]), np.array([10, 20, 30])).tolist()
        [[10, 30], [20, 30]]
    """
    pairs = [np.zeros((0, 2), dtype=np.int64)]
    for bands_N in bands_NB.T:
        order = np.argsort(bands_N, kind="stable")
        is_first = np.ones(len(order), dtype=np.bool_)
        is_first[1:] = bands_N[order][1:] != bands_N[order][:-1]
        # The sort is stable, so the first of a bucket has its smallest index.
        first_of_bucket = order[np.flatnonzero(is_first)][np.cumsum(is_first) - 1]
        pairs.append(indices_N[np.stack([first_of_bucket[~is_first], order[~is_first]], axis=1)])
    unique = np.unique(np.concatenate(pairs)[:, ::-1], axis=0)
    return unique[:, ::-1]


@dataclass(frozen=True, slots=True)
class Clusters:
    """What the comparisons gave.

    Attributes:
        members: The conversations of each cluster, ascending; the largest cluster first, then the earliest.
        num_comparisons: Pairs whose shingles were compared.
        min_jaccard: The smallest index that connected two conversations; 1 if none did.
    """

    members: tuple[tuple[int, ...], ...]
    num_comparisons: int
    min_jaccard: float


class Comparer:
    """Compares candidates as their shingles come, in the order of their indices.

    Args:
        pairs_P2: What `candidate_pairs` gave.
        threshold: The Jaccard index from which two conversations are near duplicates.
        file: A temporary file for the shingles that wait.
    """

    def __init__(self, pairs_P2: IntArray, *, threshold: float, file: IO[bytes]) -> None:
        self._threshold = threshold
        self._file = file
        self._firsts = set(pairs_P2[:, 0].tolist())
        self._pairs: dict[int, list[int]] = {}
        for first, other in pairs_P2.tolist():
            self._pairs.setdefault(other, []).append(first)
        self._places: dict[int, tuple[int, int]] = {}
        self._parents: dict[int, int] = {}
        self._num_comparisons = 0
        self._min_jaccard = 1.0

    @property
    def wanted(self) -> list[int]:
        """The conversations whose shingles are needed, ascending."""
        return sorted(self._firsts | set(self._pairs))

    def add(self, index: int, shingles: HashArray) -> None:
        """Compare a conversation with those before it.

        Args:
            index: Its index, larger than all before.
            shingles: Its shingles.
        """
        for first in self._pairs.get(index, ()):
            if self._root(first) == self._root(index):
                continue
            num_first = self._places[first][1]
            smaller, larger = sorted((num_first, len(shingles)))
            if smaller < self._threshold * larger:
                continue
            self._num_comparisons += 1
            similarity = jaccard(self._load(first), shingles)
            if similarity >= self._threshold:
                self._min_jaccard = min(self._min_jaccard, similarity)
                low, high = sorted((self._root(first), self._root(index)))
                self._parents[high] = low
        if index in self._firsts:
            self._places[index] = self._file.seek(0, 2), len(shingles)
            self._file.write(shingles.tobytes())

    def clusters(self) -> Clusters:
        """The clusters of everything that was added."""
        members: dict[int, list[int]] = {}
        for index in self.wanted:
            members.setdefault(self._root(index), []).append(index)
        found = sorted((tuple(m) for m in members.values() if len(m) > 1), key=lambda m: (-len(m), m))
        return Clusters(tuple(found), self._num_comparisons, self._min_jaccard)

    def _load(self, index: int) -> HashArray:
        place, num = self._places[index]
        self._file.seek(place)
        return np.frombuffer(self._file.read(8 * num), dtype=np.uint64)

    def _root(self, index: int) -> int:
        while (parent := self._parents.get(index, index)) != index:
            self._parents[index] = self._parents.get(parent, parent)
            index = parent
        return index


@contextmanager
def comparer(pairs_P2: IntArray, *, threshold: float) -> Iterator[Comparer]:
    """A comparer with a temporary file of its own.

    Args:
        pairs_P2: What `candidate_pairs` gave.
        threshold: The Jaccard index from which two conversations are near duplicates.

    Yields:
        The comparer.
    """
    with tempfile.TemporaryFile() as file:
        yield Comparer(pairs_P2, threshold=threshold, file=file)


def repeated(hashes_N2: HashArray) -> IntArray:
    """For each conversation the index of the first one with the same 128-bit hash; its own if it is the first.

    Args:
        hashes_N2: The hashes, as two halves.

    Returns:
        Shape [N].

    Examples:
        >>> repeated(np.uint64([[1, 2], [3, 4], [1, 2]])).tolist()
        [0, 1, 0]
    """
    order = np.lexsort((hashes_N2[:, 1], hashes_N2[:, 0]))  # stable
    is_first = np.ones(len(order), dtype=np.bool_)
    is_first[1:] = (hashes_N2[order][1:] != hashes_N2[order][:-1]).any(axis=1)
    firsts = np.empty(len(order), dtype=np.int64)
    firsts[order] = order[np.flatnonzero(is_first)][np.cumsum(is_first) - 1] if len(order) else order
    return firsts
