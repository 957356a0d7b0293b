# SPDX-License-Identifier: Apache-2.0
"""A prepared data set, opened without reading its sequences."""

import json
import resource
from pathlib import Path

from primus.errors import DataError
from primus.sft.dataset import TokenizedDataset
from primus.sft.ledger import Ledger
from primus.sft.prepared.arrays import REDO, map_shard
from primus.sft.prepared.manifest import LEDGER, QUARANTINE, Manifest, ledger_from, read_manifest, shard_folder
from primus.sft.sources import TRAIN_SPLIT

# A mapped file keeps its descriptor, and a shard has two that are mapped.
_FILES_PER_SHARD = 2
_OTHER_FILES = 256


class PreparedDataset(TokenizedDataset):
    """The training sequences of a split, mapped from the disk.

    Args:
        folder: The folder of the data set.
        manifest: Its manifest.
        split: The split.

    Attributes:
        folder: The folder of the data set.
        manifest: Its manifest.
        split: The split.

    Raises:
        DataError: If there is no such split, or a file is missing or of another size.
    """

    def __init__(self, folder: Path, manifest: Manifest, split: str) -> None:
        if split not in manifest.splits:
            raise DataError(
                f"{folder}: has no split {split!r}, only {', '.join(manifest.splits)}; prepare it with"
                " sft_validation_fraction, or name another split"
            )
        self.folder, self.manifest, self.split = folder, manifest, split
        check_sizes(folder, manifest)
        shards = manifest.splits[split]
        _allow_open_files(_FILES_PER_SHARD * len(shards) + _OTHER_FILES)
        try:
            arrays = [map_shard(folder / shard_folder(split, n), shard.counts) for n, shard in enumerate(shards)]
        except OSError as exc:
            raise DataError(
                f"{exc.filename or folder}: can't be opened ({exc.strerror}); check the disk, its permissions, and the"
                f" limits on open files and mapped regions (ulimit -n, vm.max_map_count): it has {len(shards)} shards"
            ) from exc
        super().__init__(arrays, ledger=read_ledger(folder), digests=[shard.digest for shard in shards])
        if self.fingerprint != manifest.fingerprints[split]:
            raise DataError(f"{folder}: its shards are not those that its fingerprint names; {REDO}")

    @property
    def quarantine_path(self) -> Path | None:
        """The file of the rows that are not valid, if there are any."""
        return self.folder / QUARANTINE if QUARANTINE in self.manifest.files else None


def open_prepared(folder: str | Path, split: str = TRAIN_SPLIT) -> PreparedDataset:
    """Open a prepared data set, in a moment whatever its size.

    Args:
        folder: The folder of the data set.
        split: The split to open.

    Returns:
        Its sequences.

    Raises:
        DataError: If it is not there or not whole. What can't be seen without reading everything is found by
            `verify`.
    """
    folder = Path(folder)
    return PreparedDataset(folder, read_manifest(folder), split)


def read_ledger(folder: Path) -> Ledger:
    """What became of every row of a prepared data set.

    Args:
        folder: The folder of the data set.

    Returns:
        The ledger, with the origins of rows that are not used.

    Raises:
        DataError: If it is damaged.
    """
    path = folder / LEDGER
    try:
        return ledger_from(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, AttributeError) as exc:
        raise DataError(f"{path}: is damaged ({type(exc).__name__}: {exc}); {REDO}") from exc


def check_sizes(folder: Path, manifest: Manifest) -> None:
    """Refuse a data set of which a file is missing or of another size.

    Args:
        folder: Its folder.
        manifest: Its manifest.

    Raises:
        DataError: If one is.
    """
    for name, facts in manifest.all_files().items():
        path = folder / name
        try:
            size = path.stat().st_size
        except OSError as exc:
            raise DataError(f"{path}: can't be found ({exc.strerror}); {REDO}") from exc
        if size != facts.num_bytes:
            raise DataError(f"{path}: has {size:,} bytes instead of {facts.num_bytes:,}; {REDO}")


def _allow_open_files(num_files: int) -> None:
    """Raise this process's limit on open files as far as it may, if so many are needed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < num_files:
        wanted = num_files if hard == resource.RLIM_INFINITY else min(num_files, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
