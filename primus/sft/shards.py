# SPDX-License-Identifier: Apache-2.0
"""From batches of rows to training sequences: the one way to them, in memory, on disk, and on any machine.

N: sequences. T: tokens of all of them. K: their token spans.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from primus.chat.conversations import ConversationBatch, SourceOptions, read_batches
from primus.sft.batch_encoding import EncodedBatch, Outcome, ShardEncoder
from primus.sft.ledger import TRAINED
from primus.sft.recipe import Encoder, Recipe
from primus.sft.workers import Job

BATCHES_PER_SHARD = 64
_GROUP_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class ShardJob(Job[ConversationBatch, EncodedBatch]):
    """Encoding in processes of its own.

    Attributes:
        recipe: How rows become sequences; its `max_seq_length` must be set.
        outcome: What the rows are used for.
        validation_fraction: Share of the rows held out.
    """

    recipe: Recipe
    outcome: Outcome = TRAINED
    validation_fraction: float = 0.0

    def start(self) -> Callable[[ConversationBatch], EncodedBatch]:
        """Load the tokenizer."""
        return self.build().encode

    def build(self, encoder: Encoder | None = None) -> ShardEncoder:
        """What encodes batches.

        Args:
            encoder: The formatter and the tokenizer of the recipe, if they are loaded.

        Returns:
            The encoder of batches.
        """
        assert self.recipe.max_seq_length is not None, "a training sequence has a length"
        return ShardEncoder(
            encoder or self.recipe.build(),
            max_seq_length=self.recipe.max_seq_length,
            outcome=self.outcome,
            validation_fraction=self.validation_fraction,
        )


def file_groups(files: Sequence[Path]) -> list[tuple[Path, ...]]:
    """Files that stand together, so that no shard has rows of two groups.

    Args:
        files: Data files, in order.

    Returns:
        The files in order, as few as have 64 MiB on disk together; what is not on disk stands alone.
    """
    groups: list[tuple[Path, ...]] = []
    current: list[Path] = []
    num_bytes = 0
    for file in files:
        current.append(file)
        num_bytes += file.stat().st_size if file.is_file() else _GROUP_BYTES
        if num_bytes >= _GROUP_BYTES:
            groups.append(tuple(current))
            current, num_bytes = [], 0
    return [*groups, tuple(current)] if current else groups


def shard_batches(files: Sequence[Path], source: SourceOptions) -> Iterator[tuple[int, ConversationBatch]]:
    """The batches of files, each with the number of its shard.

    A shard has 64 batches, each of about a megabyte of lines or 256 decoded rows, and ends where a group of files does.
    So the shards of a group can be made by themselves, on any machine.

    Args:
        files: Data files.
        source: How their rows are read.

    Yields:
        Number of the shard, from 0 and never decreasing, and the batch.
    """
    yield from number_shards(files, read_batches(files, source))


def number_shards(
    files: Sequence[Path], batches: Iterable[ConversationBatch]
) -> Iterator[tuple[int, ConversationBatch]]:
    """Batches with the numbers of their shards.

    Args:
        files: Data files: all of them, or a group that `file_groups` gives.
        batches: Their batches.

    Yields:
        Number of the shard, counted from 0, and the batch.
    """
    starts = {group[0] for group in file_groups(files)}
    rest = iter(files)
    path: str | None = None
    shard, num_batches = -1, 0
    for batch in batches:
        is_first_of_group = batch.rows.path != path and next(rest) in starts
        path = batch.rows.path
        if is_first_of_group or num_batches == BATCHES_PER_SHARD:
            shard, num_batches = shard + 1, 0
        num_batches += 1
        yield shard, batch
