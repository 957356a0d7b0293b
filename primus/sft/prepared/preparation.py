# SPDX-License-Identifier: Apache-2.0
"""From data files to a folder of a prepared data set, whatever ends the process in between.

sources hashed -> batches -> processes -> shards, finished one by one -> sources hashed again -> manifest -> name
"""

import json
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TypeAlias

from primus.chat.conversations import ConversationBatch
from primus.errors import DataError
from primus.sft.batch_encoding import EncodedBatch
from primus.sft.dataset import fingerprint_of, listed_problems
from primus.sft.ledger import Ledger
from primus.sft.prepared.cache import prepared_folder
from primus.sft.prepared.collected import KEPT, CollectedShard, splits_of
from primus.sft.prepared.dataset import check_sizes
from primus.sft.prepared.disk import FileFacts, disk_errors, read_pieces, sync_folder, write_file
from primus.sft.prepared.key import LOADED, differences, key_of, loaded_facts
from primus.sft.prepared.lock import hold
from primus.sft.prepared.manifest import (
    LEDGER,
    MANIFEST,
    QUARANTINE,
    Manifest,
    read_manifest,
    write_manifest,
)
from primus.sft.prepared.partial import PartialFolder, ShardRecord
from primus.sft.prepared.planning import Describe, Plan, plan_preparation
from primus.sft.prepared.source_files import (
    describe_sources,
    refuse_changed,
)
from primus.sft.recipe import Encoder
from primus.sft.shards import ShardJob, shard_batches
from primus.sft.workers import Job, WorkerPool, map_batches

BYTES_PER_WORKER = 32 << 20
"""Of data files for each process beyond this one; with less, starting it takes longer than the work."""


@dataclass(frozen=True, slots=True)
class PreparationJob(Job[ConversationBatch, tuple[str, EncodedBatch]]):
    """Encoding in processes of its own, each of which says with every batch what it has loaded.

    Attributes:
        job: How rows become sequences.
    """

    job: ShardJob

    def start(self) -> Callable[[ConversationBatch], tuple[str, EncodedBatch]]:
        """Load the tokenizer, and what makes it fast."""
        encoder = self.job.recipe.build_for_many()
        loaded = key_of(loaded_facts(self.job, tokenizer=encoder.tokenizer))
        encode = self.job.build(encoder).encode
        return lambda batch: (loaded, encode(batch))


ShardPool: TypeAlias = WorkerPool[ConversationBatch, tuple[str, EncodedBatch]]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a preparation has come.

    Attributes:
        num_rows: Rows that were read.
        num_bytes: Bytes of the files that were read.
    """

    num_rows: int
    num_bytes: int


def early_pool(job: ShardJob, *, num_workers: int) -> ShardPool | None:
    """Start the processes of a preparation, so that they load the tokenizer while this one plans.

    Args:
        job: What will be prepared.
        num_workers: Processes.

    Returns:
        The processes, for `prepare`; None if there are so few data that this process does better alone.
    """
    num_bytes = sum(file.stat().st_size for file in job.recipe.files if file.is_file())
    num_workers = _worth(num_workers, num_bytes)
    return None if num_workers == 1 else WorkerPool(PreparationJob(job), num_workers)


def _worth(num_workers: int, num_bytes: int) -> int:
    """How many processes it is worth to start for so many bytes."""
    return min(num_workers, 1 + num_bytes // BYTES_PER_WORKER)


def find_prepared(plan: Plan, folder: Path) -> Manifest | None:
    """The manifest of the data set that a plan asks for, if it is there.

    Args:
        plan: What is asked for.
        folder: Where it would lie.

    Returns:
        The manifest, or None if there is nothing.

    Raises:
        DataError: If something else lies there.
    """
    with disk_errors(folder):
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return None
        if not (folder / MANIFEST).is_file():
            raise DataError(f"{folder}: is in the way, and no prepared data set; move it away, or name another folder")
    manifest = read_manifest(folder)
    check_sizes(folder, manifest)
    if manifest.key != plan.key:
        changes = differences(manifest.facts, plan.facts)
        raise DataError(
            f"{folder}: holds a data set that was prepared otherwise ({'; '.join(changes)}); remove it, or name"
            " another folder"
        )
    return manifest


def prepare(
    plan: Plan,
    folder: Path,
    *,
    num_workers: int,
    pool: ShardPool | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_message: Callable[[str], None] = lambda _: None,
) -> Manifest:
    """Prepare a data set, or wait until another process has, or find that it is there.

    Every process of a job may call it with the same arguments: one of those that share the disk works, and the others
    wait. What it writes depends on the plan alone.

    Args:
        plan: What is to be prepared.
        folder: The folder of the data set; it gets this name when it is whole.
        num_workers: Processes.
        pool: The processes, if `early_pool` has started them.
        on_progress: Is told how far the work has come.
        on_message: Is told what is waited for, and what is taken over from a process that has ended.

    Returns:
        The manifest of the data set.

    Raises:
        DataError: If rows are not valid and may not be, a source changes while it is read, the disk is full or can't be
            written, or something else lies in the folder's place.
    """
    return prepare_by(
        lambda partial: _Preparation(plan, partial, on_message).run(num_workers, pool, on_progress),
        plan,
        folder,
        on_message=on_message,
    )


def prepare_by(
    work: Callable[[PartialFolder], Manifest], plan: Plan, folder: Path, *, on_message: Callable[[str], None]
) -> Manifest:
    """Prepare a data set by other means than the processes of this machine; otherwise as `prepare` does.

    Args:
        work: Fills the partial folder, as `finish` leaves it.
        plan: What is to be prepared.
        folder: The folder of the data set.
        on_message: Is told what is waited for.

    Returns:
        The manifest of the data set.
    """
    if not folder.name or folder.is_symlink():
        folder = folder.resolve()
    found = find_prepared(plan, folder)
    if found is not None:
        return found
    if folder.is_mount():
        raise DataError(
            f"{folder}: is where a disk is mounted, which can't be replaced by a folder; name one inside it"
        )
    with hold(folder.with_name(f"{folder.name}.lock"), on_wait=on_message, about=plan.key):
        found = find_prepared(plan, folder)
        if found is not None:
            return found
        partial = PartialFolder(folder.with_name(f"{folder.name}.partial"))
        manifest = partial.manifest(plan.key)
        if manifest is None:
            manifest = work(partial)
        with disk_errors(folder, rest=KEPT):
            partial.remove_surplus(max(map(len, manifest.splits.values())))
            sync_folder(partial.path)
            partial.path.rename(folder)
            sync_folder(folder.parent)
    return manifest


def prepare_or_wait(
    job: ShardJob,
    cache_dir: Path,
    *,
    num_workers: int,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_message: Callable[[str], None] = lambda _: None,
    encoder: Encoder | None = None,
) -> Path:
    """The folder of a data set in a cache, prepared if it is not there.

    Every process of a job calls it: of those that share the cache's disk one works, and the others wait. Where machines
    share no disk, one process of each works.

    Args:
        job: How rows become sequences.
        cache_dir: The cache.
        num_workers: Processes that the one that works starts.
        on_progress: Is told how far the work has come.
        on_message: Is told what is waited for.
        encoder: What the job's recipe builds, if it is there already.

    Returns:
        The folder, for `open_prepared`.

    Raises:
        DataError: As `prepare` does; those that waited for one that failed raise what it raised.
    """
    plan = plan_preparation(job, cache_dir=cache_dir, on_message=on_message, encoder=encoder)
    folder = prepared_folder(cache_dir, plan.key)
    prepare(plan, folder, num_workers=num_workers, on_progress=on_progress, on_message=on_message)
    return folder


class _Preparation:
    """One call: the shards that are finished, and those that are added."""

    def __init__(self, plan: Plan, partial: PartialFolder, on_message: Callable[[str], None]) -> None:
        self._plan = plan
        self._partial = partial
        with disk_errors(partial.path):
            self._records = partial.open(plan.key, plan.strict_stamps, on_message=on_message)
        if self._records:
            on_message(f"{partial.path}: takes over {len(self._records)} finished shards")
        self._num_shards = 0

    def run(self, num_workers: int, pool: ShardPool | None, on_progress: Callable[[Progress], None]) -> Manifest:
        """Do everything but giving the folder its name."""
        with ExitStack() as stack:
            # A shard is hashed and written while the next one is collected.
            thread = stack.enter_context(ThreadPoolExecutor(1))
            results = stack.enter_context(closing(self._encoded(num_workers, pool, on_progress)))
            writing: Future[None] | None = None
            for number, group in groupby(results, key=itemgetter(0)):
                collected = CollectedShard(self._plan.job)
                for _, encoded in group:
                    collected.add(encoded)
                if writing is not None:
                    writing.result()
                writing = thread.submit(self._write, number, collected)
                del collected
            if writing is not None:
                writing.result()
        records = [self._records[number] for number in range(self._num_shards) if number in self._records]
        return finish(self._plan, self._partial, records)

    def _write(self, number: int, collected: CollectedShard) -> None:
        self._records[number] = collected.write(self._partial, number)

    def _encoded(
        self, num_workers: int, pool: ShardPool | None, on_progress: Callable[[Progress], None]
    ) -> Generator[tuple[int, EncodedBatch], None, None]:
        """The results of the batches of shards that are not finished, each with the number of its shard."""
        job = self._plan.job
        finished = frozenset(self._records)
        waiting: deque[tuple[int, int]] = deque()
        sizes = {source.name: source.num_bytes for source in self._plan.sources}
        num_rows = sum(record.ledger.num_rows for record in self._records.values())

        def unfinished() -> Iterator[ConversationBatch]:
            path, bytes_before, bytes_of_file = "", 0, 0
            for number, batch in shard_batches(job.recipe.files, job.recipe.source):
                if batch.rows.path != path:
                    path, bytes_before = batch.rows.path, bytes_before + bytes_of_file
                    bytes_of_file = sizes[path]
                if batch.rows.bytes_read > bytes_of_file:
                    return  # it grows, perhaps for ever; what is wrong is said at the end
                self._num_shards = number + 1
                if number not in finished:
                    waiting.append((number, bytes_before + batch.rows.bytes_read))
                    yield batch

        for encoded in self._results(unfinished(), num_workers, pool):
            number, num_bytes = waiting.popleft()
            num_rows += encoded.ledger.num_rows
            on_progress(Progress(num_rows, num_bytes))
            yield number, encoded

    def _results(
        self, batches: Iterator[ConversationBatch], num_workers: int, pool: ShardPool | None
    ) -> Iterator[EncodedBatch]:
        if pool is not None:
            return self._of_the_plan(pool.map(batches))
        num_workers = _worth(num_workers, sum(source.num_bytes for source in self._plan.sources))
        if num_workers == 1:
            return map(self._plan.job.build(self._plan.encoder).encode, batches)
        job = replace(self._plan.job, recipe=self._plan.job.recipe.with_loaded(self._plan.encoder.tokenizer))
        return self._of_the_plan(map_batches(PreparationJob(job), batches, num_workers=num_workers))

    def _of_the_plan(self, results: Iterator[tuple[str, EncodedBatch]]) -> Iterator[EncodedBatch]:
        """The batches, if they were encoded with what the key was made from."""
        expected = key_of({name: self._plan.facts[name] for name in LOADED})
        for loaded, encoded in results:
            if loaded != expected:
                raise DataError(
                    f"{self._plan.encoder.tokenizer.name}: the tokenizer or the chat template changed while it was"
                    " used; run it again"
                )
            yield encoded


def finish(
    plan: Plan, partial: PartialFolder, records: Sequence[ShardRecord], *, describe: Describe = describe_sources
) -> Manifest:
    """Write what belongs to the whole data set, when all its shards are there.

    Args:
        plan: What is prepared.
        partial: The folder with the shards.
        records: What each of them holds.
        describe: Reads the sources once more.

    Returns:
        The manifest.

    Raises:
        DataError: If rows are not valid and may not be, or a source changed; nothing is left then.
    """
    ledger = Ledger()
    for record in records:
        ledger.add(record.ledger)
    files = plan.job.recipe.files
    sources = describe(files)
    try:
        refuse_changed(plan.sources, plan.stamps, sources, files)
        num_problems = sum(record.num_problems for record in records)
        if num_problems and plan.job.recipe.options.bad_rows == "error":
            problems = [problem for record in records for problem in record.problems]
            raise DataError(*listed_problems(problems, num_rows=ledger.num_rows, num_problems=num_problems))
    except DataError:
        with disk_errors(partial.path):
            partial.remove()
        raise
    shards = {split: tuple(record.splits[split] for record in records) for split in splits_of(plan.job).values()}
    counts = ledger.to_dict()
    with disk_errors(partial.path, rest=KEPT):
        others = {LEDGER: write_file(partial.path / LEDGER, [_ledger_text(ledger)])}
        others |= _join_quarantines(partial, records)
        manifest = Manifest(
            key=plan.key,
            facts=plan.facts,
            tokenizer=plan.encoder.tokenizer.name,
            splits=shards,
            fingerprints={
                split: fingerprint_of(
                    [shard.digest for shard in of_split],
                    num_sequences=sum(shard.counts.num_sequences for shard in of_split),
                )
                for split, of_split in shards.items()
            },
            ledger={name: value for name, value in counts.items() if name != "origins"},
            files=others,
        )
        write_manifest(partial.path, manifest)
    return manifest


def _ledger_text(ledger: Ledger) -> bytes:
    return (json.dumps(ledger.to_dict(), indent=1) + "\n").encode()


def _join_quarantines(partial: PartialFolder, records: Sequence[ShardRecord]) -> dict[str, FileFacts]:
    paths = [partial.quarantine_path(number) for number, record in enumerate(records) if record.quarantine is not None]
    path = partial.path / QUARANTINE
    path.unlink(missing_ok=True)
    return {QUARANTINE: write_file(path, (piece for one in paths for piece in read_pieces(one)))} if paths else {}
