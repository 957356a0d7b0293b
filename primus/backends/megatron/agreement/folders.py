# SPDX-License-Identifier: Apache-2.0
"""Whether what one rank writes is there for the others: a checkpoint is written by all of them into one folder."""

import os
import time
import uuid
from pathlib import Path

from primus.backends.megatron.agreement.failures import on_all_ranks
from primus.backends.megatron.agreement.ranks import answers_of_all, name_some
from primus.backends.megatron.distributed import on_first_rank
from primus.errors import LayoutError

_PREFIX = ".shared-"
# A disk of the network may let a machine believe for half a minute that what it once looked for is not there.
_WAIT_S = 40.0
_BETWEEN_LOOKS_S = 0.1


def require_shared_folder(folder: Path, *, key: str) -> None:
    """Make sure that all ranks see the same folder, and may write there; all of them call it together, connected.

    Without it each machine would have a part of every checkpoint, and a resume would find that out.

    Args:
        folder: A folder; where it is not there yet, the nearest one above it is looked at.
        key: The setting that says where it is.

    Raises:
        LayoutError: If some ranks do not see what the first one writes there, or may not write.
        PrimusError: If one of them can't look.
        OSError: If the first one can't write there.
    """
    num_up, name = on_first_rank(lambda: _leave_mark(folder))
    path = _upwards(folder)[num_up]
    try:
        own = on_all_ranks(lambda: (_waits_for(path / name), os.access(path, os.W_OK), str(path.resolve())))
    finally:
        on_first_rank(lambda: (path / name).unlink(missing_ok=True))
    answers = answers_of_all(own)
    first, (*_, resolved) = answers[0]
    blind = [(rank, other) for rank, (is_seen, _, other) in answers if not is_seen]
    if blind:
        _, other = blind[0]
        looked = f", which looked in {other}" if other != resolved else ""
        raise LayoutError(
            f"{resolved}: what {first} writes there is not seen by {name_some(rank for rank, _ in blind)}{looked}; set"
            f" {key} to a folder on a disk that all machines share"
        )
    barred = [rank for rank, (_, is_writable, _) in answers if not is_writable]
    if barred:
        raise LayoutError(
            f"{resolved}: {name_some(barred)} may not write there, and every rank writes its part of a checkpoint; give"
            f" all machines the right to, or set {key} to another folder"
        )


def _upwards(folder: Path) -> list[Path]:
    return [folder, *folder.absolute().parents]


def _leave_mark(folder: Path) -> tuple[int, str]:
    """Make a file in the folder or above it; how far above, and its name, which nobody has looked for before."""
    paths = _upwards(folder)
    num_up = next(number for number, path in enumerate(paths) if path.is_dir())
    name = f"{_PREFIX}{uuid.uuid4().hex}"
    (paths[num_up] / name).touch()
    return num_up, name


def _waits_for(path: Path) -> bool:
    until_s = time.monotonic() + _WAIT_S
    while not path.exists():
        if time.monotonic() > until_s:
            return False
        time.sleep(_BETWEEN_LOOKS_S)
    return True
