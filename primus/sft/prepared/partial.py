# SPDX-License-Identifier: Apache-2.0
"""A data set that is being prepared: which of its shards are finished, after any end of the process that wrote them.

<folder>.partial/
  state.json             the key of the data set, so that nothing of another one is taken for a part of it
  records/00000.json     written last of what belongs to a shard: with it, the shard is finished
  quarantine/00000.jsonl its rows that are not valid, if there are any
  train/shard-00000/     its files, where they stay
"""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from primus.errors import DataError
from primus.sft.batch_encoding import BadRow
from primus.sft.ledger import Ledger
from primus.sft.prepared.disk import FileFacts, facts_of, replace_file, sync_folder
from primus.sft.prepared.manifest import (
    LEDGER,
    MANIFEST,
    QUARANTINE,
    Manifest,
    ShardFacts,
    ledger_from,
    read_manifest,
    read_sealed,
    shard_folder,
    write_sealed,
)
from primus.sft.prepared.source_files import Stamp
from primus.sft.quarantine import quarantine_line
from primus.sft.sources import TRAIN_SPLIT, VALIDATION_SPLIT
from primus.sft.workers import num_cores

STATE = "state.json"
RECORDS = "records"
QUARANTINES = "quarantine"

MAX_PROBLEMS = 10
"""Problems that an error message lists; the rest is counted."""


@dataclass(kw_only=True)
class ShardRecord:
    """A finished shard.

    Attributes:
        splits: What it holds of each split.
        ledger: What became of its rows.
        problems: What is wrong with the first of its rows that are not valid.
        num_problems: How many problems there are.
        quarantine: The file of the rows that are not valid, if it is kept and there are any.
    """

    splits: Mapping[str, ShardFacts]
    ledger: Ledger = field(default_factory=Ledger)
    problems: Sequence[str] = ()
    num_problems: int = 0
    quarantine: FileFacts | None = None

    def to_dict(self) -> dict[str, Any]:
        """The record as plain data."""
        return {
            "splits": {split: facts.to_dict() for split, facts in self.splits.items()},
            "ledger": self.ledger.to_dict(),
            "problems": list(self.problems),
            "num_problems": self.num_problems,
            "quarantine": None if self.quarantine is None else self.quarantine.to_dict(),
        }

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> "ShardRecord":
        """The record that plain data tell."""
        quarantine = document["quarantine"]
        return cls(
            splits={split: ShardFacts.from_dict(facts) for split, facts in document["splits"].items()},
            ledger=ledger_from(document["ledger"]),
            problems=tuple(document["problems"]),
            num_problems=int(document["num_problems"]),
            quarantine=None if quarantine is None else FileFacts.from_dict(quarantine),
        )


class PartialFolder:
    """The folder of a data set that is being prepared.

    Args:
        path: The folder.
        writer: A name of this process, where processes of other machines may write the same shard: it gets its name
            when it is whole, and then has the same bytes whoever wrote it.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: Path, *, writer: str = "") -> None:
        self.path = path
        self._writer = writer

    def open(
        self, key: str, stamps: Sequence[Stamp], *, on_message: Callable[[str], None] = lambda _: None
    ) -> dict[int, ShardRecord]:
        """Make the folder, or take over what a process has left there.

        Args:
            key: The key of the data set.
            stamps: The strict stamps of its sources, taken before their content was hashed: shards that were made
                before a source was written may be made of what it held in between.
            on_message: Is told if what is there can't be taken over.

        Returns:
            The finished shards whose files are what was written, by number.

        Raises:
            DataError: If there is something else under the folder's name.
        """
        state = {"key": key, "stamps": [asdict(stamp) for stamp in stamps]}
        if self.path.exists() and not self._is_of(state):
            self._refuse_other_content()
            on_message(f"{self.path}: was begun with other options, or before a source was touched; begins anew")
            self.remove()
        if not self.path.exists():
            self.path.mkdir(parents=True)
            (self.path / RECORDS).mkdir()
            write_sealed(self.path / STATE, state)
            sync_folder(self.path.parent)
        (self.path / RECORDS).mkdir(exist_ok=True)
        records = {int(path.stem): path for path in (self.path / RECORDS).glob("*.json") if path.stem.isdecimal()}
        with ThreadPoolExecutor(num_cores()) as threads:
            found = dict(zip(records, threads.map(self._finished, records, records.values()), strict=True))
        return {number: record for number, record in found.items() if record is not None}

    def manifest(self, key: str) -> Manifest | None:
        """The manifest, if the process before this one ended when everything but the last name was written."""
        if not (self.path / MANIFEST).exists():
            return None
        try:
            manifest = read_manifest(self.path)
        except DataError:
            return None
        is_whole = manifest.key == key and self._are_right(manifest.all_files())
        return manifest if is_whole else None

    def new_shard_folder(self, split: str, number: int) -> Path:
        """An empty folder for the files of a shard.

        Args:
            split: The split.
            number: The shard.

        Returns:
            The folder.
        """
        folder = self._unnamed(split, number)
        if folder.exists():
            shutil.rmtree(folder)
        folder.parent.mkdir(exist_ok=True)  # the one above it is gone if another process has finished everything
        folder.mkdir()
        return folder

    def write_bad_rows(self, number: int, bad_rows: Sequence[BadRow]) -> FileFacts | None:
        """Write the rows of a shard that are not valid.

        Args:
            number: The shard.
            bad_rows: The rows.

        Returns:
            The facts of the file; None if there is none.
        """
        if not bad_rows:
            return None
        path = self.quarantine_path(number)
        path.parent.mkdir(exist_ok=True)
        lines = (quarantine_line(bad.row, reason=bad.reason, error=bad.error).encode() for bad in bad_rows)
        return replace_file(path, lines, writer=self._writer)

    def finish_shard(self, number: int, record: ShardRecord) -> None:
        """Write the record of a shard whose files are on the disk.

        Args:
            number: The shard.
            record: What it holds.
        """
        for split in record.splits:
            folder, unnamed = self.path / shard_folder(split, number), self._unnamed(split, number)
            if unnamed != folder:
                shutil.rmtree(folder, ignore_errors=True)
                unnamed.rename(folder)
            sync_folder(folder)
            sync_folder(folder.parent)
        write_sealed(self._record_path(number), record.to_dict(), writer=self._writer)

    def record(self, number: int) -> ShardRecord:
        """The record of a shard that was finished by another process a moment ago."""
        return read_sealed(self._record_path(number), ShardRecord.from_dict)

    def remove_shard(self, number: int, splits: Sequence[str]) -> None:
        """Remove the files of a shard that is not finished, so that they take no room."""
        for split in splits:
            shutil.rmtree(self._unnamed(split, number), ignore_errors=True)
        for path in (self.quarantine_path(number), self._record_path(number)):
            path.with_name(f"{path.name}{self._writer}.part").unlink(missing_ok=True)

    def remove_surplus(self, num_shards: int) -> None:
        """Remove what only the preparation needs, and shards that no data belong to."""
        for name in (RECORDS, QUARANTINES):
            shutil.rmtree(self.path / name, ignore_errors=True)
        known = {Path(shard_folder("", number)).name for number in range(num_shards)}
        for path in self.path.glob("*/shard-*"):
            if path.name not in known:
                shutil.rmtree(path)
        (self.path / STATE).unlink(missing_ok=True)

    def quarantine_path(self, number: int) -> Path:
        """The file of the rows of a shard that are not valid."""
        return self.path / QUARANTINES / f"{number:05}.jsonl"

    def remove(self) -> None:
        """Remove everything, at once: what is left where files can't be removed has another name.

        Raises:
            OSError: If it can't be renamed, or not all of it can be removed.
        """
        trash = self.path.with_name(f"{self.path.name}.{os.getpid()}.old")
        self.path.rename(trash)
        shutil.rmtree(trash)

    def _unnamed(self, split: str, number: int) -> Path:
        return self.path / f"{shard_folder(split, number)}{self._writer}"

    def _record_path(self, number: int) -> Path:
        return self.path / RECORDS / f"{number:05}.json"

    def _is_of(self, state: Mapping[str, Any]) -> bool:
        try:
            return read_sealed(self.path / STATE, lambda document: all(document[name] == state[name] for name in state))
        except DataError:
            return False

    def _refuse_other_content(self) -> None:
        known = {STATE, MANIFEST, LEDGER, QUARANTINE, RECORDS, QUARANTINES, TRAIN_SPLIT, VALIDATION_SPLIT}
        names = {path.name.removesuffix(".part") for path in self.path.iterdir()} if self.path.is_dir() else {""}
        if not names <= known:
            raise DataError(
                f"{self.path}: is in the way, and was not made by primus data prepare; move it away, or name another"
                " folder with --out"
            )

    def _finished(self, number: int, path: Path) -> ShardRecord | None:
        try:
            record = read_sealed(path, ShardRecord.from_dict)
        except DataError:
            return None
        files = {
            f"{shard_folder(split, number)}/{name}": facts
            for split, shard in record.splits.items()
            for name, facts in shard.files.items()
        }
        if record.quarantine is not None:
            files[f"{QUARANTINES}/{number:05}.jsonl"] = record.quarantine
        return record if self._are_right(files) else None

    def _are_right(self, files: Mapping[str, FileFacts]) -> bool:
        try:
            return all(facts_of(self.path / name) == facts for name, facts in files.items())
        except OSError:
            return False
