# SPDX-License-Identifier: Apache-2.0
"""Whether every byte of a prepared data set is the one that was written."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from primus.errors import DataError
from primus.sft.dataset import fingerprint_of
from primus.sft.packing_cache import PACKING
from primus.sft.prepared.disk import FileFacts, facts_of
from primus.sft.prepared.key import key_of
from primus.sft.prepared.manifest import MANIFEST, Manifest, read_manifest
from primus.sft.workers import num_cores


def verify(folder: Path, *, on_progress: Callable[[int], None] = lambda _: None) -> list[str]:
    """Read all of a prepared data set and compare it with its manifest.

    Args:
        folder: The folder of the data set.
        on_progress: Is told how many bytes were read.

    Returns:
        A line for each file that is damaged, missing, or one too many; none if everything is right.

    Raises:
        DataError: If it is no prepared data set at all.
    """
    if not (folder / MANIFEST).exists():
        read_manifest(folder)
    try:
        manifest = read_manifest(folder)
    except DataError as exc:
        return list(exc.problems)
    problems = list(_contradictions(folder, manifest))
    files = manifest.all_files()
    num_bytes = 0
    with ThreadPoolExecutor(num_cores()) as threads:
        found = threads.map(_problem, (folder / name for name in files), files.values())
        for facts, problem in zip(files.values(), found, strict=True):
            num_bytes += facts.num_bytes
            on_progress(num_bytes)
            problems += [] if problem is None else [problem]
    known = {folder / MANIFEST, *(folder / name for name in files)}
    folders = {parent for path in known for parent in path.parents}
    # Pack plans are made from the data set, and each has its own digests.
    known.update([folder / PACKING, *(folder / PACKING).rglob("*")])
    problems += [
        f"{path}: does not belong to the data set; remove it"
        for path in sorted(folder.rglob("*"))
        if path not in known and path not in folders
    ]
    return problems


def _contradictions(folder: Path, manifest: Manifest) -> Iterator[str]:
    """What a manifest says that can't be true, whoever sealed it."""
    if key_of(manifest.facts) != manifest.key:
        yield f"{folder / MANIFEST}: its key is not that of its facts"
    for split, shards in manifest.splits.items():
        digests = [shard.digest for shard in shards]
        fingerprint = fingerprint_of(digests, num_sequences=manifest.count(split, "num_sequences"))
        if fingerprint != manifest.fingerprints[split]:
            yield f"{folder / MANIFEST}: the fingerprint of the split {split} is not that of its shards"


def _problem(path: Path, facts: FileFacts) -> str | None:
    try:
        found = facts_of(path)
    except FileNotFoundError:
        return f"{path}: is missing"
    except OSError as exc:
        return f"{path}: can't be read ({exc.strerror})"
    if found.num_bytes != facts.num_bytes:
        return f"{path}: has {found.num_bytes:,} bytes instead of {facts.num_bytes:,}"
    return None if found == facts else f"{path}: has other bytes than were written"
