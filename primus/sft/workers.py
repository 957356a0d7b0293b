# SPDX-License-Identifier: Apache-2.0
"""The same function on many batches, on all cores, with the results in order."""

import multiprocessing
import os
import signal
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from functools import partial
from itertools import islice
from typing import Any, Generic, TypeVar

from primus.errors import DataError, PrimusError

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
    """The result of every batch, in the order of the batches.

    The work begins at once in the other processes, and goes on while the results are consumed.

    Args:
        job: What is done with a batch.
        batches: The batches; only a few are held at a time.
        num_workers: Processes; 1 does the work in this one.

    Returns:
        The results, one after another. They do not depend on `num_workers`.

    Raises:
        DataError: If a process was ended from outside, mostly for want of memory.
    """
    if num_workers == 1:
        return map(job.start(), batches)
    # A process that starts afresh has none of this one's threads and locks.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_start, initargs=(job,))
    rest = iter(batches)
    with ExitStack() as stack:
        stack.callback(executor.shutdown, cancel_futures=True)
        waiting = deque(_submit(executor, batch) for batch in islice(rest, _WAITING_PER_WORKER * num_workers))
        stack.pop_all()  # from here on the results close it
    return _in_order(executor, waiting, rest)


def _submit(executor: ProcessPoolExecutor, batch: Any) -> Future[Any]:
    """Submit a batch; a process that this starts can't be reached by Ctrl-C before it ignores it.

    Where signals can't be held back, it is reached while it starts, and says so.
    """
    if not hasattr(signal, "pthread_sigmask"):
        return executor.submit(_handle, batch)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return executor.submit(_handle, batch)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _in_order(executor: ProcessPoolExecutor, waiting: deque[Future[Any]], rest: Iterator[Any]) -> Iterator[Any]:
    try:
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(_submit(executor, batch) for batch in islice(rest, 1))
            yield result
    except BrokenProcessPool as exc:
        raise DataError(
            "workers: a process was ended from outside, mostly for want of memory; use fewer with --workers"
        ) from exc
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _start(job: Job[Any, Any]) -> None:
    global _function  # noqa: PLW0603  # one job in the life of a worker process
    # The processes share the cores; threads of each would only get in each other's way.
    os.environ.update(TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits for the results
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _function = job.start()
    except PrimusError as exc:
        # An initializer's own error would only say that the pool is broken.
        _function = partial(_raise, exc)


def _end_with_parent() -> None:
    """End this process when the one that waits for the results is gone, even by SIGKILL: it would wait forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _raise(error: PrimusError, _: Any) -> Any:
    raise error


def _handle(batch: Any) -> Any:
    assert _function is not None
    return _function(batch)
