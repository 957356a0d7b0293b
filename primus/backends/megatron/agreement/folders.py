# SPDX-License-Identifier: Apache-2.0
"""Whether what one rank writes is there for the others: a checkpoint is written by all of them into one folder."""

import time
import uuid
from pathlib import Path

from primus.backends.megatron.agreement.ranks import answers_of_all, name_ranks
from primus.backends.megatron.distributed import on_first_rank
from primus.errors import LayoutError

_PREFIX = ".shared-"
_WAIT_S = 10.0
_BETWEEN_LOOKS_S = 0.1


def require_shared_folder(folder: Path, *, key: str) -> None:
    """Make sure that all ranks see the same folder; all of them call it together, connected.

    Without it each machine would have a part of every checkpoint, and a resume would find that out.

    Args:
        folder: A folder; it is made.
        key: The setting that says where it is.

    Raises:
        LayoutError: If some ranks do not see what the first one writes there.
        OSError: If the first one can't write there.
    """
    name = on_first_rank(lambda: _leave_mark(folder))
    is_seen = _waits_for(folder / name)
    answers = answers_of_all((is_seen, str(folder.resolve())))
    on_first_rank(lambda: (folder / name).unlink(missing_ok=True))
    blind = [rank for rank, (sees, _) in answers if not sees]
    if not blind:
        return
    first, (_, path) = answers[0]
    other = dict(answers)[blind[0]][1]
    looked = f", which looked in {other}" if other != path else ""
    raise LayoutError(
        f"{path}: what {first} writes there is not seen by {name_ranks(blind)}{looked}; set {key} to a folder on a disk"
        " that all machines share"
    )


def _leave_mark(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{_PREFIX}*"):
        old.unlink(missing_ok=True)
    # A name that no machine can remember not to have seen.
    name = f"{_PREFIX}{uuid.uuid4().hex}"
    (folder / name).touch()
    return name


def _waits_for(path: Path) -> bool:
    until_s = time.monotonic() + _WAIT_S
    while not path.exists():
        if time.monotonic() > until_s:
            return False
        time.sleep(_BETWEEN_LOOKS_S)
    return True
