# SPDX-License-Identifier: Apache-2.0
"""The batches of one shard, collected in memory and written as its files."""

from collections.abc import Mapping

from primus.sft.batch_encoding import BadRow, EncodedBatch
from primus.sft.ledger import VALIDATION, Ledger
from primus.sft.prepared.arrays import ShardCounts, write_shard
from primus.sft.prepared.disk import disk_errors
from primus.sft.prepared.manifest import ShardFacts
from primus.sft.prepared.partial import MAX_PROBLEMS, PartialFolder, ShardRecord
from primus.sft.sequences import SequenceArrays
from primus.sft.shards import ShardJob
from primus.sft.sources import TRAIN_SPLIT, VALIDATION_SPLIT

KEPT = ": it goes on behind the shards that are finished"


def splits_of(job: ShardJob) -> Mapping[str, str]:
    """The splits that a job makes.

    Args:
        job: The job.

    Returns:
        For each split of the encoded batches that is written the name that it has on the disk: what was read to
        validate on is the split `validation`, and nothing else.
    """
    if job.outcome == VALIDATION:
        return {TRAIN_SPLIT: VALIDATION_SPLIT}
    return {name: name for name in (TRAIN_SPLIT, *((VALIDATION_SPLIT,) if job.validation_fraction else ()))}


class CollectedShard:
    """What the batches of one shard gave.

    Args:
        job: How rows become sequences.
    """

    def __init__(self, job: ShardJob) -> None:
        self._splits = splits_of(job)
        self._keeps_bad_rows = job.recipe.options.bad_rows == "quarantine"
        self._parts: dict[str, list[SequenceArrays]] = {name: [] for name in self._splits}
        self._ledger = Ledger()
        self._bad_rows: list[BadRow] = []
        self._problems: list[str] = []
        self._num_problems = 0

    def add(self, encoded: EncodedBatch) -> None:
        """Take the next batch."""
        for name, parts in self._parts.items():
            parts.append(encoded.splits[name])
        self._ledger.add(encoded.ledger)
        self._num_problems += len(encoded.problems)
        self._problems += encoded.problems[: MAX_PROBLEMS - len(self._problems)]
        if self._keeps_bad_rows:
            self._bad_rows += encoded.bad_rows

    def write(self, partial: PartialFolder, number: int) -> ShardRecord:
        """Write the shard; it is finished when this returns.

        Args:
            partial: Where to.
            number: The number of the shard.

        Returns:
            What was written.

        Raises:
            DataError: If the disk is full or can't be written; nothing is left of the shard.
        """
        shards: dict[str, ShardFacts] = {}
        is_finished = False
        try:
            with disk_errors(partial.path, rest=KEPT):
                for name, split in self._splits.items():
                    arrays = SequenceArrays.concatenate(self._parts.pop(name))
                    folder = partial.new_shard_folder(split, number)
                    files = write_shard(folder, arrays)
                    shards[split] = ShardFacts(ShardCounts.of(arrays), arrays.digest(), files)
                record = ShardRecord(
                    splits=shards,
                    ledger=self._ledger,
                    problems=tuple(self._problems),
                    num_problems=self._num_problems,
                    quarantine=partial.write_bad_rows(number, self._bad_rows),
                )
                partial.finish_shard(number, record)
            is_finished = True
        finally:
            if not is_finished:
                partial.remove_shard(number, list(self._splits.values()))
        return record
