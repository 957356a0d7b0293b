# SPDX-License-Identifier: Apache-2.0
"""The files that a command writes: beside their names until they are whole, and then renamed."""

import gzip
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from primus.chat.reading import STDIN
from primus.errors import ConfigError

STDOUT = "-"
_ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst")


def check_target(target: str, *, beside: Sequence[Path], sources: Sequence[Path], force: bool) -> None:
    """Refuse a target before anything is read.

    Args:
        target: The file, or `-` for standard output.
        beside: Files that are written with it.
        sources: Files that are read.
        force: Whether existing files may be replaced.

    Raises:
        ConfigError: If it has another ending, or one of the files that are written is one of the sources, is a folder,
            or exists and may not be replaced.
    """
    if target == STDOUT:
        return
    path = Path(target)
    if not path.name.lower().endswith(_ENDINGS) or path.name.lower() in _ENDINGS:
        raise ConfigError(
            f"{target}: is no name for a target; end it with {', '.join(_ENDINGS)}, or write - for stdout"
        )
    if path.is_dir():
        raise ConfigError(f"{target}: is a folder; name a file in it")
    for folder in (other for other in beside if other.is_dir()):
        raise ConfigError(f"{folder}: is a folder, and a file is written there; give the target another name")
    read = {source.resolve() for source in sources if str(source) != STDIN}
    for written in (path, *beside):
        if written.resolve() in read:
            raise ConfigError(f"{written}: is read and would be overwritten; give the target another name")
    existing = [str(written) for written in (path, *beside) if written.exists()]
    if existing and not force:
        them, verb = ("it", "exists") if len(existing) == 1 else ("them", "exist")
        raise ConfigError(f"{', '.join(existing)}: {verb}; give --force to replace {them}, or the target another name")


class Target:
    """The file that is written.

    Args:
        file: Takes the bytes.
        stack: What is closed when all of them are written.
    """

    def __init__(self, file: IO[bytes], stack: ExitStack) -> None:
        self._file = file
        self._stack = stack

    def write(self, content: bytes) -> None:
        """Write what follows."""
        self._file.write(content)

    def finish(self) -> None:
        """Write the end of it, so that a full disk is noticed before any file has its name."""
        self._stack.close()


@contextmanager
def open_target(target: str) -> Iterator[Target]:
    """Open a target to be written; nothing stands under its name unless all of it was written.

    Args:
        target: A name that `check_target` takes. The same content gives the same bytes, compressed or not.

    Yields:
        The file.
    """
    if target == STDOUT:
        yield Target(sys.stdout.buffer, ExitStack())
        sys.stdout.buffer.flush()
        return
    path = Path(target)
    with open_beside(path) as part, ExitStack() as stack:
        file = stack.enter_context(part.open("wb"))
        yield Target(_compressed(stack, file, suffix=path.suffix.lower()), stack)


@contextmanager
def open_beside(path: Path) -> Iterator[Path]:
    """A name beside a file's own, to write it there.

    Args:
        path: The file; what is written gets this name when the block ends, and is removed when it fails.

    Yields:
        The name to write to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)  # it is there only if the block failed


def _compressed(stack: ExitStack, raw: IO[bytes], *, suffix: str) -> Any:
    if suffix == ".gz":
        # Without name and time, which would be other bytes every time.
        return stack.enter_context(gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=6, mtime=0))
    if suffix == ".zst":
        import zstandard

        return stack.enter_context(zstandard.ZstdCompressor(write_checksum=True).stream_writer(raw, closefd=False))
    return raw
