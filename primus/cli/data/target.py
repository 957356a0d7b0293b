# SPDX-License-Identifier: Apache-2.0
"""The file that a command writes: beside its name until it is whole, and then renamed."""

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
        force: Whether an existing file may be replaced.

    Raises:
        ConfigError: If it has another ending, is one of the sources, exists and may not be replaced, or is a folder.
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
    read = {source.resolve() for source in sources if str(source) != STDIN}
    for written in (path, *beside):
        if written.resolve() in read:
            raise ConfigError(f"{written}: is read and would be overwritten; give the target another name")
    if path.exists() and not force:
        raise ConfigError(f"{target}: exists; give --force to replace it, or another name")


@contextmanager
def open_target(target: str) -> Iterator[IO[bytes]]:
    """Open a target to be written; nothing stands under its name unless all of it was written.

    Args:
        target: A name that `check_target` takes. The same content gives the same bytes, compressed or not.

    Yields:
        The file.
    """
    if target == STDOUT:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with ExitStack() as stack:
            yield _compressed(stack, stack.enter_context(part.open("wb")), suffix=path.suffix.lower())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _compressed(stack: ExitStack, raw: IO[bytes], *, suffix: str) -> Any:
    if suffix == ".gz":
        # Without name and time, which would be other bytes every time.
        return stack.enter_context(gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=6, mtime=0))
    if suffix == ".zst":
        import zstandard

        return stack.enter_context(zstandard.ZstdCompressor(write_checksum=True).stream_writer(raw, closefd=False))
    return raw
