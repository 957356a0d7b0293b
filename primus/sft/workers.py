# SPDX-License-Identifier: Apache-2.0
"""The same function on many batches, on all cores, with the results in order."""

import multiprocessing
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Generic, TypeVar

from primus.errors import DataError

Batch = TypeVar("Batch")
Result = TypeVar("Result")

# Batches that wait for each process: enough that none is idle, few enough that memory stays flat.
_WAITING_PER_WORKER = 3

_function: Callable[[Any], Any] | None = None


class Job(ABC, Generic[Batch, Result]):
    """What is done with each batch; built once in each process.

    A subclass is a small picklable object whose `start` gives the function, with everything loaded that it needs.
    """

    @abstractmethod
    def start(self) -> Callable[[Batch], Result]:
        """Load what the function needs.

        Returns:
            The function that handles one batch.
        """


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_batches(job: Job[Batch, Result], batches: Iterable[Batch], *, num_workers: int) -> Iterator[Result]:
    """Yield the result of every batch, in the order of the batches.

    Args:
        job: What is done with a batch.
        batches: The batches; only a few are held at a time.
        num_workers: Processes; 1 does the work in this one.

    Yields:
        The results. They do not depend on `num_workers`.

    Raises:
        DataError: If a process was ended from outside, mostly for want of memory.
    """
    if num_workers == 1:
        yield from map(job.start(), batches)
        return
    # A process that starts afresh has none of this one's threads and locks.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_start, initargs=(job,))
    waiting: deque[Future[Result]] = deque()
    try:
        for batch in batches:
            waiting.append(executor.submit(_handle, batch))
            if len(waiting) >= _WAITING_PER_WORKER * num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as exc:
        raise DataError(
            f"workers: one of {num_workers} processes was ended from outside, mostly for want of memory; use fewer with"
            " --workers"
        ) from exc
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _start(job: Job[Any, Any]) -> None:
    global _function  # noqa: PLW0603  # one job in the life of a worker process
    _function = job.start()


def _handle(batch: Any) -> Any:
    assert _function is not None
    return _function(batch)
