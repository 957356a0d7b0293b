# SPDX-License-Identifier: Apache-2.0
"""One run at a time in a folder: two would write each other's checkpoints and metrics."""

import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger("primus")

LOCK_FILE = ".running"
_WAIT_S = 20.0
_BETWEEN_TRIES_S = 0.05


@contextmanager
def folder_held(folder: Path, *, wait_s: float = _WAIT_S) -> Iterator[None]:
    """Hold the folder of a run inside the block; the system gives it back when the process ends, however it does.

    Where the disk has no locks the run goes on without one, with a warning.

    Args:
        folder: Folder of the run; it is made.
        wait_s: How long another run may take to end, as one does that has just been killed.

    Raises:
        BlockingIOError: If another run holds it for longer. The message says which process that is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_FILE
    with path.open("a+", encoding="utf-8") as file:
        until_s = time.monotonic() + wait_s
        while not _try(file.fileno(), path):
            if time.monotonic() > until_s:
                file.seek(0)
                raise BlockingIOError(errno.EWOULDBLOCK, file.read().strip() or "another process", str(path))
            time.sleep(_BETWEEN_TRIES_S)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def _try(handle: int, path: Path) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as exc:
        logger.warning("%s: cannot be locked (%s), so nothing keeps a second run out of the folder", path, exc.strerror)
    return True
