# SPDX-License-Identifier: Apache-2.0
"""The folder that an export writes: what it may replace, and how it appears under its name."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from primus.errors import CheckpointError


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
    if not any((output / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise CheckpointError(f"{output}: holds no config.json, so --force does not replace it; name another folder")


@contextmanager
def written_beside(output: Path) -> Iterator[Path]:
    """A new folder beside `output` that takes its name, and its place, when the block ends well."""
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(f".{output.name}.{os.getpid()}")
    replaced = output.with_name(f"{unfinished.name}.replaced")
    unfinished.mkdir()
    try:
        yield unfinished
        if output.exists():
            output.rename(replaced)
        unfinished.rename(output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
