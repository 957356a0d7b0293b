# SPDX-License-Identifier: Apache-2.0
"""Preparing on many machines with Ray Data, to the same bytes as on one.

    file groups -> survey: content hashes, number of shards -> each group's shards into the one partial folder -> finish

The unit of work is a group of files (`file_groups`), whose shards depend on nothing else. A survey of all groups says
where the numbers of each group's shards begin. Everything else is as on one machine, with the same folder in between:
what a cluster has left undone, one machine can go on with. The machines share a disk under the same paths.
"""

import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import accumulate, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from primus.chat.conversations import SourceOptions, read_batches
from primus.errors import ConfigError, DataError, PrimusError
from primus.sft.batch_encoding import ShardEncoder
from primus.sft.prepared.collected import CollectedShard
from primus.sft.prepared.disk import disk_errors
from primus.sft.prepared.manifest import Manifest
from primus.sft.prepared.partial import PartialFolder
from primus.sft.prepared.planning import Plan, plan_preparation
from primus.sft.prepared.preparation import Progress, finish, prepare_by
from primus.sft.prepared.source_files import SourceFacts, check_sources, describe_sources
from primus.sft.shards import ShardJob, file_groups, number_shards

LOCAL = "local"
"""The address that starts a cluster of this machine alone."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class GroupSurvey:
    """What a group of files holds, before anything of it is encoded.

    Attributes:
        sources: Name, size and content of each file.
        num_shards: Its shards.
        last_group: With which conversation of several rows it ends, if it does.
    """

    sources: tuple[SourceFacts, ...]
    num_shards: int
    last_group: str | None


class RayPreparation:
    """Preparations on a cluster; a context manager that connects to it.

    Args:
        address: The cluster: `auto` for the one that this machine belongs to, `ray://HOST:PORT`, or `local` to start
            one here. A connection that there is already is used.
        on_message: Is told what is waited for.

    Raises:
        ConfigError: If Ray is not installed, or there is no such cluster.
    """

    def __init__(self, address: str, *, on_message: Callable[[str], None] = lambda _: None) -> None:
        try:
            import ray.data  # noqa: PLC0415
        except ModuleNotFoundError as exc:
            raise ConfigError(
                f"--ray: needs Ray ({exc.name} is not installed); install the extra: pip install 'primus[ray]'"
            ) from exc
        self._ray: Any = ray
        self._address = address
        self._on_message = on_message

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Connect to the cluster, and leave it afterwards.

        Yields:
            Nothing.

        Raises:
            ConfigError: If there is no such cluster.
        """
        if self._ray.is_initialized():
            yield
            return
        where = {} if self._address == LOCAL else {"address": self._address}
        try:
            self._ray.init(**where, log_to_driver=False, logging_level="error")
        except (ConnectionError, ValueError, RuntimeError) as exc:
            reason = " ".join(str(exc).split())
            raise ConfigError(f"--ray: can't connect to {self._address} ({reason:.200}); check the address") from exc
        try:
            yield
        finally:
            self._ray.shutdown()

    def prepare(
        self, job: ShardJob, find_folder: Callable[[Plan], Path], *, on_progress: Callable[[Progress], None]
    ) -> tuple[Plan, Manifest]:
        """Prepare a data set.

        Args:
            job: How rows become sequences.
            find_folder: Tells the folder of the data set, on the disk that the machines share.
            on_progress: Is told how far the work has come.

        Returns:
            What was asked for, and the manifest of the data set.

        Raises:
            DataError: As `prepare` does.
        """
        check_sources(job.recipe.files)
        groups = file_groups(job.recipe.files)
        surveys: list[GroupSurvey] = []

        def survey(_: Sequence[Path]) -> list[SourceFacts]:
            rows = self._map(_Survey, groups, source=job.recipe.source)
            surveys[:] = [_survey_of(rows[number]) for number in range(len(groups))]
            return [facts for one in surveys for facts in one.sources]

        def hash_again(_: Sequence[Path]) -> list[SourceFacts]:
            rows = self._map(_Hashing, groups)
            return [SourceFacts(**facts) for number in range(len(groups)) for facts in rows[number]["sources"]]

        def work(partial: PartialFolder) -> Manifest:
            with disk_errors(partial.path):
                finished = partial.open(plan.key, plan.strict_stamps)
            if finished:
                self._on_message(f"{partial.path}: takes over {len(finished)} finished shards")
            firsts = [0, *accumulate(one.num_shards for one in surveys)]
            missing = [
                number for number in range(len(groups)) if not finished.keys() >= set(range(*firsts[number:][:2]))
            ]
            before = [None, *(one.last_group for one in surveys)]
            num_rows = num_bytes = 0
            for row in self._rows(
                _Encoding,
                {number: groups[number] for number in missing},
                job=job,
                folder=str(partial.path.absolute()),
                finished=frozenset(finished),
                firsts=firsts,
                before=before,
            ):
                num_rows += row["num_rows"]
                num_bytes += sum(facts.num_bytes for facts in surveys[row["number"]].sources)
                on_progress(Progress(num_rows, num_bytes))
            records = [finished.get(number) or partial.record(number) for number in range(firsts[-1])]
            return finish(plan, partial, records, describe=hash_again)

        plan = plan_preparation(job, describe=survey)
        return plan, prepare_by(work, plan, find_folder(plan), on_message=self._on_message)

    def _map(self, kind: "type[_Work]", groups: Sequence[Sequence[Path]], **arguments: Any) -> dict[int, Row]:
        return {row["number"]: row for row in self._rows(kind, dict(enumerate(groups)), **arguments)}

    def _rows(
        self, kind: "type[_Work]", groups: Mapping[int, Sequence[Path]], **arguments: Any
    ) -> Generator[Row, None, None]:
        """What each group gives, as it is done; the first problem ends everything."""
        if not groups:
            return
        data = self._ray.data
        data.DataContext.get_current().enable_progress_bars = False
        items = [{"number": number, "files": [str(file) for file in group]} for number, group in groups.items()]
        num_cpus = int(self._ray.cluster_resources().get("CPU", 1))
        results = data.from_items(items, override_num_blocks=len(items)).map(
            kind,
            fn_constructor_kwargs={"cwd": str(Path.cwd()), "arguments": arguments},
            concurrency=max(1, min(len(items), num_cpus)),
            num_cpus=1,
        )
        for row in results.iter_rows():
            if row["problems"]:
                raise DataError(*row["problems"])
            yield row


class _Work(ABC):
    """What is done with groups in one process of the cluster."""

    def __init__(self, cwd: str, arguments: Mapping[str, Any]) -> None:
        os.chdir(cwd)  # files may be named by where the command was called
        os.environ.update(TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1")
        self._arguments = arguments

    def __call__(self, row: Row) -> Row:
        files = tuple(Path(name) for name in row["files"])
        number = int(row["number"])
        try:
            return {"number": number, "problems": [], **self._handle(number, files)}
        except PrimusError as exc:
            return {"number": number, "problems": list(exc.problems)}

    @abstractmethod
    def _handle(self, number: int, files: tuple[Path, ...]) -> Row:
        """What becomes of one group."""


class _Survey(_Work):
    def _handle(self, number: int, files: tuple[Path, ...]) -> Row:  # noqa: ARG002
        ends: list[str | None] = []
        source: SourceOptions = self._arguments["source"]
        sources = describe_sources(files)
        batches = read_batches(files, source, on_end=ends.append)
        num_shards = 1 + max(shard for shard, _ in number_shards(files, batches))
        return {"sources": [asdict(one) for one in sources], "num_shards": num_shards, "last_group": ends[0] or ""}


def _survey_of(row: Row) -> GroupSurvey:
    sources = tuple(SourceFacts(**facts) for facts in row["sources"])
    return GroupSurvey(sources, int(row["num_shards"]), row["last_group"] or None)


class _Hashing(_Work):
    def _handle(self, number: int, files: tuple[Path, ...]) -> Row:  # noqa: ARG002
        return {"sources": [asdict(facts) for facts in describe_sources(files)]}


class _Encoding(_Work):
    def __init__(self, cwd: str, arguments: Mapping[str, Any]) -> None:
        super().__init__(cwd, arguments)
        self._encode: ShardEncoder | None = None

    def _handle(self, number: int, files: tuple[Path, ...]) -> Row:
        job: ShardJob = self._arguments["job"]
        partial = PartialFolder(Path(self._arguments["folder"]), writer=f".{socket.gethostname()}-{os.getpid()}")
        first: int = self._arguments["firsts"][number]
        batches = read_batches(files, job.recipe.source, last_group=self._arguments["before"][number])
        if self._encode is None:
            self._encode = job.build()
        num_rows = 0
        for shard, group in groupby(number_shards(files, batches), key=itemgetter(0)):
            if first + shard in self._arguments["finished"]:
                continue
            collected = CollectedShard(job)
            for _, batch in group:
                encoded = self._encode.encode(batch)
                num_rows += encoded.ledger.num_rows
                collected.add(encoded)
            collected.write(partial, first + shard)
        return {"num_rows": num_rows}
