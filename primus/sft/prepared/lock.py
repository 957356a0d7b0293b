# SPDX-License-Identifier: Apache-2.0
"""One process at a time, on all machines that share a disk; the others wait and are told for whom."""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from primus.errors import DataError, PrimusError
from primus.sft.prepared.disk import disk_errors

SECONDS_BETWEEN_MESSAGES = 30.0
_SECONDS_BETWEEN_TRIES = 0.1
_HELD_BY_ANOTHER = (errno.EACCES, errno.EAGAIN)


@contextmanager
def hold(path: Path, *, on_wait: Callable[[str], None], about: str = "") -> Iterator[None]:
    """Hold a lock; the system gives it back when the process ends, however it does.

    Where the process that this one waited for ended with an error of the user's, this one ends with it, too: the same
    work would fail in the same way.

    Args:
        path: The lock's file, which is removed afterwards.
        on_wait: Is told who holds it, at once and then every 30 seconds.
        about: What it is held for; the error of a process that held it for something else is none of this one's.

    Yields:
        Nothing.

    Raises:
        DataError: If the file can't be made, the disk has no locks, or the process that this one waited for failed.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _acquired(path, on_wait, about)
    with file:
        _write_note(file, about=about)
        try:
            yield
        except PrimusError as exc:
            _write_note(file, about=about, problems=list(exc.problems))
            raise
        finally:
            # While it is held: who waits for it reads the note, finds that the file is gone, and makes a new one.
            path.unlink(missing_ok=True)


def _acquired(path: Path, on_wait: Callable[[str], None], about: str) -> IO[str]:
    last_message_s: float | None = None
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+", encoding="utf-8")
        while not _try(file, path):
            now = time.monotonic()
            if last_message_s is None or now - last_message_s >= SECONDS_BETWEEN_MESSAGES:
                note, last_message_s = _note(file), now
                on_wait(f"{path}: waiting for process {note.get('pid', '?')} on {note.get('host', '?')}")
            time.sleep(_SECONDS_BETWEEN_TRIES)
        if _is_current(file, path):
            return file
        note = _note(file)
        problems = note.get("problems")
        file.close()
        if problems and note.get("about", "") == about:
            raise DataError(*problems)


def _try(file: IO[str], path: Path) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        if exc.errno in _HELD_BY_ANOTHER:
            return False
        file.close()
        raise DataError(
            f"{path}: can't be locked ({exc.strerror}), so two processes might write the same data set; name a folder"
            " on another disk with --out, or with sft_cache_dir"
        ) from exc
    return True


def _is_current(file: IO[str], path: Path) -> bool:
    """Whether the file has not been removed by the process that held it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _note(file: IO[str]) -> dict[str, Any]:
    file.seek(0)
    try:
        note = json.loads(file.read())
    except (json.JSONDecodeError, UnicodeDecodeError):
        return {}  # it is being written
    return note if isinstance(note, dict) else {}


def _write_note(file: IO[str], **more: Any) -> None:
    text = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), **more})
    with disk_errors(Path(file.name) if isinstance(file.name, str) else Path("lock")):
        file.seek(0)
        file.truncate()
        file.write(text)
        file.flush()
