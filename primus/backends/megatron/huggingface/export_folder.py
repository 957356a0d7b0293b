# SPDX-License-Identifier: Apache-2.0
"""The folder that an export writes: what it may replace, and how it appears under its name."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from primus.errors import CheckpointError

_MARKER = ".primus-export"


def check_output(output: Path, *, force: bool) -> None:
    """Refuse to write over anything but, with `force`, an earlier export.

    Args:
        output: The folder that is to be written.
        force: Whether it may replace an earlier export.

    Raises:
        CheckpointError: If that is what would happen.
    """
    if output.exists() and not output.is_dir():
        raise CheckpointError(f"{output}: is a file; name a folder")
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not force:
        raise CheckpointError(f"{output}: the folder is not empty; name another one, or pass --force to replace it")
    if not (output / _MARKER).is_file():
        raise CheckpointError(
            f"{output}: is no export (it has no {_MARKER}), so --force does not replace it; name another folder"
        )


def keep_sources(output: Path, *, sources: Iterable[Path]) -> None:
    """Refuse to replace what an export is made from.

    Args:
        output: The folder that is to be written.
        sources: Files and folders, which need not exist.

    Raises:
        CheckpointError: If one of them is `output`, or in it.
    """
    for source in sources:
        if source.resolve().is_relative_to(output.resolve()):
            raise CheckpointError(f"{output}: holds {source}, which the run was made from; name another folder")


@contextmanager
def written_beside(output: Path) -> Iterator[Path]:
    """A new folder beside `output`, whose files are that folder's when the block ends well."""
    output = output.resolve()  # a link stays one, and "." has a name
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(f".{output.name}.{os.getpid()}")
    replaced = output.with_name(f"{unfinished.name}.replaced")
    unfinished.mkdir()
    try:
        yield unfinished
        (unfinished / _MARKER).write_text("primus checkpoint export-hf --force may replace this folder.\n")
        if output.exists():  # It stays the same folder, for who is in it and for what is mounted there.
            replaced.mkdir()
            _move_all(output, replaced)
            _move_all(unfinished, output)
        else:
            unfinished.rename(output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def _move_all(source: Path, target: Path) -> None:
    for path in source.iterdir():
        shutil.move(path, target / path.name)
