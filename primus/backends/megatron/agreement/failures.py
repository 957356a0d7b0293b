# SPDX-License-Identifier: Apache-2.0
"""Work that each rank does for itself, and whose failure on one of them ends all of them.

Otherwise the others would wait for one that has ended, until the time for that is over.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from primus.backends.megatron.agreement.ranks import answers_of_all
from primus.backends.megatron.distributed import Process, briefly_connected
from primus.config.schema import TrainerConfig
from primus.errors import PrimusError

T = TypeVar("T")


def on_unconnected_ranks(work: Callable[[], T], *, place: Process, trainer: TrainerConfig) -> T:
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
    outcome = _attempt(work)
    with briefly_connected(place, trainer):
        return _settle(outcome)


def on_all_ranks(work: Callable[[], T]) -> T:
    """Do something on every rank, and go on when all of them have done it; all ranks call it together, connected.

    Args:
        work: Called without arguments; it does not wait for other ranks.

    Returns:
        This rank's result.

    Raises:
        PrimusError: As for `on_unconnected_ranks`.
        OSError: As for `on_unconnected_ranks`.
    """
    return _settle(_attempt(work))


@dataclass(frozen=True)
class _Done(Generic[T]):
    result: T


def _attempt(work: Callable[[], T]) -> "_Done[T] | PrimusError | OSError":
    try:
        return _Done(work())
    except (PrimusError, OSError) as exc:
        return exc


def _settle(outcome: "_Done[T] | PrimusError | OSError") -> T:
    own = _problems_of(outcome) if isinstance(outcome, (PrimusError, OSError)) else ()
    failed = [(rank, problems) for rank, problems in answers_of_all(own) if problems]
    if isinstance(outcome, (PrimusError, OSError)):
        raise outcome
    if failed:
        rank, problems = failed[0]
        raise PrimusError(*(f"{rank}: {problem}" for problem in problems))
    return outcome.result


def _problems_of(error: PrimusError | OSError) -> tuple[str, ...]:
    if isinstance(error, PrimusError):
        return tuple(error.problems)
    return (f"{error.filename}: {error.strerror}; see to it on that machine",)
