# SPDX-License-Identifier: Apache-2.0
"""A folder of prepared data sets, each under its key."""

from pathlib import Path

from primus.config.schema import TrainConfig
from primus.errors import DataError
from primus.sft.prepared.key import Facts, differences, key_of
from primus.sft.prepared.manifest import MANIFEST, Manifest, read_manifest

CACHE_NAME = "prepared"
"""The cache inside a run's workspace."""


def prepared_folder(cache_dir: Path, key: str) -> Path:
    """Where the data set with a key lies in a cache."""
    return cache_dir / key


def cache_dir_of(config: TrainConfig) -> Path:
    """Where a run looks for prepared data sets."""
    return config.trainer.sft_cache_dir or config.workspace / CACHE_NAME


def explain(facts: Facts, folder: Path) -> list[str]:
    """Why a data set is prepared, or is not.

    Args:
        facts: What the data set depends on.
        folder: Where it lies or would lie, beside others.

    Returns:
        Lines for people: where it lies, or which one of those in the cache is most like it, and what differs.
    """
    if (folder / MANIFEST).is_file() and read_manifest(folder).key == key_of(facts):
        return [f"{folder}: is prepared"]
    nearest: tuple[list[str], Path] | None = None
    for path, manifest in _data_sets(folder.parent):
        changes = differences(manifest.facts, facts)
        if nearest is None or len(changes) < len(nearest[0]):
            nearest = changes, path
    if nearest is None:
        return [f"{folder}: is not prepared; {folder.parent} holds no other data set"]
    changes, path = nearest
    return [f"{folder}: is not prepared; the nearest is {path}, from which it differs in", *(f"  {c}" for c in changes)]


def _data_sets(cache_dir: Path) -> list[tuple[Path, Manifest]]:
    found: list[tuple[Path, Manifest]] = []
    for path in sorted(cache_dir.glob(f"*/{MANIFEST}")):
        try:
            found.append((path.parent, read_manifest(path.parent)))
        except DataError:
            continue  # one that can't be read is not like any other
    return found
