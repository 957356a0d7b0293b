# SPDX-License-Identifier: Apache-2.0
"""From a recipe to counts, sketches and clusters, on all cores, in memory that grows by some 250 bytes a conversation.

    first pass:   batch -> BatchStats -> added up in order
    second pass:  the candidates for near duplicates -> their shingles -> compared

N: conversations of a batch. W: those of them that have words. B: bands.
"""

import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from primus.chat.conversations import ConversationBatch, read_batches
from primus.chat.messages import Conversation
from primus.chat.reading import STDIN
from primus.errors import ConversationError, DataError
from primus.sft.encoding import special_ids
from primus.sft.recipe import Recipe
from primus.sft.stats.counts import Counts
from primus.sft.stats.distribution import Occurrences
from primus.sft.stats.near_duplicates import Clusters, IntArray, candidate_pairs, comparer, repeated
from primus.sft.stats.shingles import Bands, Sketcher, conversation_shingles
from primus.sft.stats.signals import SignalFinder
from primus.sft.stats.token_counts import count_tokens
from primus.sft.stats.writing import HashArray
from primus.sft.workers import Job, map_batches

_HASHED = ("conversation", "first_user_message", "answers")
"""What exact duplicates are looked for in."""

Advance = Callable[[int], None]


@dataclass(slots=True)
class BatchStats:
    """What is known of the conversations of one batch.

    Attributes:
        counts: What adds up.
        num_parsed: Valid conversations of the batch, those included that can't be tokenized.
        places_N: Which of these each counted conversation is.
        hashes_N32: 128-bit hashes, in halves, of the conversation, its first user message and its answers; 0 where
            there is none.
        with_words_W: Which of the counted conversations have words.
        bands_WB: The hashes of their bands.
        origins: Where each conversation stands, packed.
    """

    counts: Counts
    num_parsed: int
    places_N: IntArray
    hashes_N32: HashArray
    with_words_W: IntArray
    bands_WB: HashArray
    origins: bytes


@dataclass(frozen=True, slots=True)
class StatsJob(Job[ConversationBatch, BatchStats]):
    """Counts a batch.

    Attributes:
        recipe: How conversations become tokens.
        bands: How near duplicates are found; None does not look for them.
    """

    recipe: Recipe
    bands: Bands | None

    def start(self) -> Callable[[ConversationBatch], BatchStats]:
        """Load the tokenizer.

        Returns:
            The function that counts one batch.
        """
        encoder = self.recipe.build()
        front, back = special_ids(encoder.tokenizer, add_bos=encoder.add_bos, add_eos=encoder.options.add_eos)
        finder = SignalFinder((*encoder.tokenizer.control_tokens, *encoder.formatter.control_markers))
        sketcher = Sketcher(self.bands) if self.bands else None
        num_bands = self.bands.num_bands if self.bands else 0

        def count(batch: ConversationBatch) -> BatchStats:
            counts = Counts()
            hashes, sketches, origins = [], [], []
            with_words: list[int] = []
            places: list[int] = []
            num_parsed = -1
            for num_parsed, conversation in enumerate(_parsed(batch, counts)):
                try:
                    traced = encoder.trace(conversation)
                except ConversationError as exc:
                    counts.bad_conversations.setdefault(exc.reason, Occurrences()).add(conversation.origin)
                    continue
                tokens = count_tokens(traced, num_front=len(front), num_back=len(back))
                counts.add_tokens(tokens)
                counts.num_splits += traced.encoded.num_splits
                counts.add_texts(conversation)
                counts.add_signals(finder.find(conversation, num_targets=tokens.num_targets), conversation.origin)
                if sketcher is not None and len(shingles := conversation_shingles(conversation)):
                    sketches.append(sketcher.sketch(shingles))
                    with_words.append(len(places))
                hashes.append(_hashes(conversation))
                places.append(num_parsed)
                origins.append(conversation.origin)
            return BatchStats(
                counts=counts,
                num_parsed=num_parsed + 1,
                places_N=np.array(places, dtype=np.int64),
                hashes_N32=np.array(hashes, dtype=np.uint64).reshape(-1, len(_HASHED), 2),
                with_words_W=np.array(with_words, dtype=np.int64),
                bands_WB=np.array(sketches, dtype=np.uint64).reshape(len(sketches), num_bands),
                origins=zlib.compress(json.dumps(origins).encode(), 1),
            )

        return count


def _parsed(batch: ConversationBatch, counts: Counts) -> Iterator[Conversation]:
    """The valid conversations of a batch, while its rows are counted."""
    for reading in batch.readings():
        counts.num_rows += len(reading.rows)
        if reading.error is not None:
            counts.bad_rows.setdefault(reading.error.reason, Occurrences()).add(reading.origin, times=len(reading.rows))
        yield from reading.conversations


def _hashes(conversation: Conversation) -> list[list[int]]:
    """Halves of the 128-bit hashes of what exact duplicates are looked for in; zeros for what is not there."""
    first_user = next((m.content for m in conversation.messages if m.role == "user"), None)
    answers = [m.content for m in conversation.messages if m.role == "assistant" and m.content.strip()]
    facts = [conversation.content_hash]
    for fact in (first_user, answers or None):
        text = json.dumps(fact, ensure_ascii=False).encode()
        facts.append("0" * 32 if not fact else hashlib.blake2b(text, digest_size=16).hexdigest())
    return [[int(fact[:16], 16), int(fact[16:], 16)] for fact in facts]


@dataclass(frozen=True, slots=True)
class ShinglesOf:
    """Some conversations of a batch.

    Attributes:
        batch: The batch.
        places: Which of its valid conversations.
        indices: Their indices among all counted conversations.
    """

    batch: ConversationBatch
    places: tuple[int, ...]
    indices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ShingleJob(Job[ShinglesOf, list[tuple[int, str, HashArray]]]):
    """Makes the shingles of some conversations."""

    def start(self) -> Callable[[ShinglesOf], list[tuple[int, str, HashArray]]]:
        """Nothing needs to be loaded.

        Returns:
            A function that gives index, content hash and shingles of each conversation.
        """
        return _shingles_of


def _shingles_of(wanted: ShinglesOf) -> list[tuple[int, str, HashArray]]:
    index_of = dict(zip(wanted.places, wanted.indices, strict=True))
    return [
        (index_of[place], conversation.content_hash, conversation_shingles(conversation))
        for place, conversation in enumerate(_parsed(wanted.batch, Counts()))
        if place in index_of
    ]


@dataclass(slots=True)
class Gathered:
    """Everything that was found, before it is put into a report.

    Attributes:
        recipe: How conversations became tokens.
        bands: How near duplicates were looked for; None if they were not.
        counts: What adds up.
        firsts: For each kind of exact duplicate and each conversation, the index of the first that is equal; -1 where
            there is nothing to compare.
        clusters: Near duplicates among the conversations that are no exact copies of earlier ones.
        batches: What is known of each batch, less its counts.
    """

    recipe: Recipe
    bands: Bands | None
    counts: Counts = field(default_factory=Counts)
    firsts: dict[str, IntArray] = field(default_factory=dict)
    clusters: Clusters = field(default_factory=lambda: Clusters((), 0, 1.0))
    batches: list[BatchStats] = field(default_factory=list)

    @property
    def starts(self) -> IntArray:
        """The index of the first conversation of each batch, and the number of all."""
        return np.cumsum([0, *(len(batch.places_N) for batch in self.batches)])

    def content_hash(self, index: int) -> str:
        """The content hash of a conversation."""
        starts = self.starts
        number = int(np.searchsorted(starts, index, side="right")) - 1
        high, low = self.batches[number].hashes_N32[index - int(starts[number]), 0].tolist()
        return f"{high:016x}{low:016x}"

    def origins(self, indices: Iterable[int]) -> list[str]:
        """Where conversations stand.

        Args:
            indices: Their indices among all counted conversations.

        Returns:
            Their origins, in the same order.
        """
        starts = self.starts
        result = []
        for index in indices:
            number = int(np.searchsorted(starts, index, side="right")) - 1
            names = json.loads(zlib.decompress(self.batches[number].origins))
            result.append(str(names[index - int(starts[number])]))
        return result


def gather(
    recipe: Recipe,
    *,
    bands: Bands | None,
    num_workers: int,
    advance: Advance = lambda _: None,
) -> Gathered:
    """Count everything, and find exact duplicates; `compare` finds near ones.

    Args:
        recipe: What to count, and how conversations become tokens.
        bands: How near duplicates are to be found; None makes no sketches for that.
        num_workers: Processes; the result does not depend on it.
        advance: Called with the number of rows that were counted.

    Returns:
        What was found.

    Raises:
        DataError: If a file can't be read, or is standard input, which would be read twice for near duplicates.
    """
    if bands is not None and any(str(file) == STDIN for file in recipe.files):
        raise DataError(
            "<stdin>: near duplicates are compared in a second pass, and standard input can't be read twice; write it"
            " to a file, or turn them off (--near-threshold 0)"
        )
    gathered = Gathered(recipe, bands)
    num = 0
    batches = read_batches(recipe.files, recipe.source)
    for stats in map_batches(StatsJob(recipe, bands), batches, num_workers=num_workers):
        gathered.counts.merge(stats.counts)
        advance(stats.counts.num_rows)
        stats.counts = Counts()
        stats.with_words_W += num
        num += len(stats.places_N)
        gathered.batches.append(stats)
    _find_exact(gathered)
    return gathered


def _find_exact(gathered: Gathered) -> None:
    empty = np.zeros((0, len(_HASHED), 2), dtype=np.uint64)
    hashes_N32 = np.concatenate([empty, *(stats.hashes_N32 for stats in gathered.batches)])
    for place, name in enumerate(_HASHED):
        hashes_N2 = hashes_N32[:, place]
        gathered.firsts[name] = np.where(hashes_N2.any(axis=1), repeated(hashes_N2), -1)


def compare(gathered: Gathered, *, num_workers: int, advance: Advance = lambda _: None) -> None:
    """Find the near duplicates: read the candidates again and compare their shingles.

    Args:
        gathered: What was counted; gets the clusters.
        num_workers: Processes; the result does not depend on it.
        advance: Called with the number of conversations that were compared.

    Raises:
        DataError: If a file has changed since it was counted.
    """
    if gathered.bands is None or not gathered.counts.num_conversations:
        return
    indices_W = np.concatenate([stats.with_words_W for stats in gathered.batches])
    bands_WB = np.concatenate([stats.bands_WB for stats in gathered.batches])
    is_first_W = gathered.firsts["conversation"][indices_W] == indices_W
    pairs_P2 = candidate_pairs(bands_WB[is_first_W], indices_W[is_first_W])
    with comparer(pairs_P2, threshold=gathered.bands.threshold) as comparing:
        wanted = np.array(comparing.wanted, dtype=np.int64)
        num_seen = 0
        chosen = _chosen(gathered, wanted)
        for shingled in map_batches(ShingleJob(), chosen, num_workers=num_workers) if len(wanted) else ():
            for index, content_hash, shingles in shingled:
                if gathered.content_hash(index) != content_hash:
                    [origin] = gathered.origins([index])
                    raise DataError(f"{origin}: has changed while it was read; wait until the file is written")
                comparing.add(index, shingles)
            num_seen += len(shingled)
            advance(len(shingled))
        if num_seen != len(wanted):
            raise DataError(
                f"{gathered.recipe.files[0]}: a file has shrunk while it was read; wait until it is written"
            )
        gathered.clusters = comparing.clusters()


def _chosen(gathered: Gathered, wanted: IntArray) -> Iterator[ShinglesOf]:
    """Read the files again, and yield the batches that have some of the wanted conversations."""
    starts = gathered.starts
    for number, batch in enumerate(read_batches(gathered.recipe.files, gathered.recipe.source)):
        if number >= len(gathered.batches):
            raise DataError(f"{batch.rows.path}: has grown while it was read; wait until it is written")
        low, high = np.searchsorted(wanted, starts[number : number + 2])
        inside = wanted[low:high]
        if len(inside):
            places = gathered.batches[number].places_N[inside - starts[number]]
            yield ShinglesOf(batch, tuple(places.tolist()), tuple(inside.tolist()))
