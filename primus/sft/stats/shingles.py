# SPDX-License-Identifier: Apache-2.0
"""What of a conversation is compared for near duplicates, and the sketch by which likely pairs are found.

    conversation -> words -> shingles of 5 words -> MinHash -> one hash per band

Two conversations whose shingles have the Jaccard index s agree in one MinHash with probability s, and in all r of a
band with s**r; they become candidates if they agree in any of the b bands, with probability 1 - (1 - s**r)**b (Broder
1997, "On the resemblance and containment of documents"; Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets",
chapter 3). Candidates are compared exactly, so a sketch can miss a pair and never makes one up.
"""

from dataclasses import dataclass

import numpy as np

from primus.chat.messages import Conversation
from primus.sft.order import random_keys
from primus.sft.stats.writing import HashArray, mixed, words

SHINGLE_WORDS = 5
MAX_HASHES = 128
MAX_MISSED = 0.01
"""The largest probability that a pair at the threshold shares no band."""

_SEED = 0
_CHUNK = 1024


@dataclass(frozen=True, slots=True)
class Bands:
    """How MinHashes are put together.

    Attributes:
        threshold: The Jaccard index from which two conversations are near duplicates.
        num_bands: Bands, b.
        rows: MinHashes of each, r.
    """

    threshold: float
    num_bands: int
    rows: int

    def candidate_probability(self, jaccard: float) -> float:
        """The probability that two conversations with this index share a band."""
        return float(1 - (1 - jaccard**self.rows) ** self.num_bands)


def choose_bands(threshold: float) -> Bands:
    """The bands with the most rows that miss a pair at the threshold with a probability of at most `MAX_MISSED`.

    Args:
        threshold: The Jaccard index from which two conversations are near duplicates, above 0 and at most 1.

    Returns:
        The bands; at most `MAX_HASHES` MinHashes in all. One row each where even that misses more.

    Examples:
        >>> choose_bands(0.8)
        Bands(threshold=0.8, num_bands=21, rows=6)
        >>> round(choose_bands(0.8).candidate_probability(0.8), 4)
        0.9983
    """
    for rows in range(MAX_HASHES, 1, -1):
        bands = Bands(threshold, MAX_HASHES // rows, rows)
        if 1 - bands.candidate_probability(threshold) <= MAX_MISSED:
            return bands
    return Bands(threshold, MAX_HASHES, 1)


def compared_text(conversation: Conversation) -> str:
    """The text by which conversations are compared.

    Args:
        conversation: The conversation.

    Returns:
        What user, assistant and tools say, with reasoning and calls, line by line. The system's words and the
        definitions of tools are left out: many conversations share them.
    """
    parts: list[str] = []
    for message in conversation.messages:
        if message.role != "system":
            parts += [message.reasoning or "", message.content]
            parts += [f"{call.name} {call.arguments}" for call in message.tool_calls]
    return "\n".join(parts)


def shingles(words_W: HashArray) -> HashArray:
    """The different runs of `SHINGLE_WORDS` words, hashed and sorted; of fewer words, the one run of all.

    Args:
        words_W: The words as hashes.

    Returns:
        The shingles; none of no words.
    """
    if not len(words_W):
        return words_W
    num = max(len(words_W) - SHINGLE_WORDS + 1, 1)
    runs = np.zeros(num, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for place, factor in enumerate(random_keys(min(SHINGLE_WORDS, len(words_W)), seed=_SEED, stream=1)):
            runs += words_W[place : place + num] * (factor | np.uint64(1))
    return np.unique(mixed(runs))


class Sketcher:
    """Makes the hashes of a conversation's bands.

    Args:
        bands: How MinHashes are put together.
    """

    def __init__(self, bands: Bands) -> None:
        self.bands = bands
        num = bands.num_bands * bands.rows
        # The high half of a * x + b modulo 2**64 is a 2-independent hash of 32 bits x (Dietzfelbinger 1996).
        self._factors = random_keys(num, seed=_SEED, stream=2)[:, None]
        self._offsets = random_keys(num, seed=_SEED, stream=3)[:, None]
        self._places = (random_keys(bands.rows, seed=_SEED, stream=4) | np.uint64(1))[None, :]

    def sketch(self, shingles_N: HashArray) -> HashArray:
        """One hash per band; the same for sketches of equal bands.

        Args:
            shingles_N: The shingles, at least one.

        Returns:
            Shape [bands].
        """
        x = shingles_N >> np.uint64(32)
        with np.errstate(over="ignore"):
            parts = [
                (self._factors * x[start : start + _CHUNK] + self._offsets).min(axis=1)
                for start in range(0, len(x), _CHUNK)
            ]
            minima = np.minimum.reduce(parts) >> np.uint64(32)
            rows = minima.reshape(self.bands.num_bands, self.bands.rows)
            return mixed((rows * self._places).sum(axis=1, dtype=np.uint64))


def jaccard(a: HashArray, b: HashArray) -> float:
    """The Jaccard index of two sets: their common members over all members.

    Args:
        a: Different shingles.
        b: Different shingles.

    Returns:
        From 0 to 1; 1 for two empty sets.

    Examples:
        >>> jaccard(np.uint64([1, 2, 3]), np.uint64([2, 3, 4]))
        0.5
    """
    common = len(np.intersect1d(a, b, assume_unique=True))
    union = len(a) + len(b) - common
    return common / union if union else 1.0


def conversation_shingles(conversation: Conversation) -> HashArray:
    """The shingles of what is said in a conversation."""
    return shingles(words(compared_text(conversation)))
