# SPDX-License-Identifier: Apache-2.0
"""Work that each rank does for itself, and whose failure on one of them ends all of them.

Ranks that are not connected would wait for one that has ended until the time for that is over.
"""

from collections.abc import Callable
from typing import TypeVar

from primus.backends.megatron.agreement.ranks import answers_of_all
from primus.backends.megatron.distributed import Process, briefly_connected
from primus.config.schema import TrainerConfig
from primus.errors import PrimusError

T = TypeVar("T")


def on_all_ranks(work: Callable[[], T], *, place: Process, trainer: TrainerConfig) -> T:
    """Do something on every rank, and go on when all of them have done it; all ranks call it together.

    They are connected only when they are done, which may take hours.

    Args:
        work: Called without arguments.
        place: This process; its device is not used.
        trainer: The trainer module of the run.

    Returns:
        This rank's result.

    Raises:
        PrimusError: If the work raised one, here or on another rank: then with that rank's name.
        OSError: If the work raised one here.
    """
    if place.world_size == 1:
        return work()
    error: PrimusError | OSError | None = None
    try:
        result = work()
    except (PrimusError, OSError) as exc:
        error = exc
    with briefly_connected(place, trainer):
        answers = answers_of_all(_problems_of(error))
    if error is not None:
        raise error
    failed = [(rank, problems) for rank, problems in answers if problems]
    if failed:
        rank, problems = failed[0]
        raise PrimusError(*(f"{rank}: {problem}" for problem in problems))
    return result


def _problems_of(error: PrimusError | OSError | None) -> tuple[str, ...]:
    if error is None:
        return ()
    if isinstance(error, PrimusError):
        return tuple(error.problems)
    return (f"{error.filename}: {error.strerror}; see to it there",)
