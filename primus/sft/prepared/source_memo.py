# SPDX-License-Identifier: Apache-2.0
"""Content hashes of files that have not been touched since, so that a job does not read all data to find its cache.

A hash is remembered under the file's strict stamp. The stamp holds the time of the last change of anything about the
file, which no program can set back; a file that was changed a moment ago is not remembered, for it may be changed again
within the same tick of the disk's clock.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import astuple
from pathlib import Path
from typing import Any

from primus.errors import DataError
from primus.sft.prepared.disk import disk_errors
from primus.sft.prepared.lock import hold
from primus.sft.prepared.manifest import read_sealed, write_sealed
from primus.sft.prepared.source_files import SourceFacts, Stamp, describe_sources, stamps_of

MEMO = "sources.json"

_SETTLED_NS = 2_000_000_000

Memo = dict[str, Any]


def describe_sources_once(
    files: Sequence[Path], cache_dir: Path, *, on_message: Callable[[str], None]
) -> list[SourceFacts]:
    """Size and content of files: read by one process, and by the others only if they have changed since.

    Args:
        files: The files.
        cache_dir: The cache of prepared data sets, which keeps the memory. One that can't be written is done without.
        on_message: Is told which process reads the files while this one waits.

    Returns:
        The facts of each, in order.
    """
    path = cache_dir / MEMO
    stamps = stamps_of(files, is_strict=True)
    with ExitStack() as stack:
        memo = _read(path)
        if any(_remembered(memo, *pair) is None for pair in zip(files, stamps, strict=True)):
            try:
                stack.enter_context(hold(path.with_suffix(".lock"), on_wait=on_message))
            except DataError:
                return describe_sources(files)
            memo = _read(path)
        missing = [file for file, stamp in zip(files, stamps, strict=True) if _remembered(memo, file, stamp) is None]
        now_ns = time.time_ns()
        found = dict(zip(missing, describe_sources(missing), strict=True))
        settled = {
            str(file.resolve()): [*astuple(stamp), found[file].digest]
            for file, stamp in zip(files, stamps, strict=True)
            if file in found and now_ns - max(stamp.changed_ns, stamp.modified_ns) > _SETTLED_NS
        }
        if settled:
            with disk_errors(path):
                write_sealed(path, {**memo, **settled})
    return [
        found[file] if file in found else SourceFacts(str(file), stamp.num_bytes, str(_remembered(memo, file, stamp)))
        for file, stamp in zip(files, stamps, strict=True)
    ]


def are_remembered(files: Sequence[Path], cache_dir: Path) -> bool:
    """Whether the content of all files is remembered in a cache, as far as a look at them tells.

    Args:
        files: The files.
        cache_dir: The cache.

    Returns:
        True if a data set of them may be there already.
    """
    memo = _read(cache_dir / MEMO)
    return all(
        file.is_file() and _remembered(memo, file, stamp) is not None
        for file, stamp in zip(files, stamps_of(files, is_strict=True), strict=True)
    )


def _read(path: Path) -> Memo:
    try:
        return read_sealed(path, dict) if path.exists() else {}
    except (DataError, OSError):
        return {}  # it is only a memory


def _remembered(memo: Memo, file: Path, stamp: Stamp) -> str | None:
    entry = memo.get(str(file.resolve()))
    return str(entry[-1]) if entry is not None and entry[:-1] == list(astuple(stamp)) else None
