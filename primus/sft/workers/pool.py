# SPDX-License-Identifier: Apache-2.0
"""Processes that work for this one, and what they are sent."""

import fcntl
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from itertools import islice
from subprocess import TimeoutExpired
from types import TracebackType
from typing import Any, Generic

from typing_extensions import Self

from primus.errors import DataError
from primus.sft.workers.job import Batch, Job, Result
from primus.sft.workers.messages import receive, send
from primus.sft.workers.process import Ends, start_processes

# Batches that wait for each process: enough that none is idle, few enough that memory stays flat.
_WAITING_PER_WORKER = 3
_PIPE_BYTES = 1 << 20
_END_S = 0.2


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
    return WorkerPool(job, num_workers).map(batches)


class WorkerPool(Generic[Batch, Result]):
    """Processes that load what a job needs as soon as they are made, and work for one call of `map`.

    Args:
        job: What is done with a batch.
        num_workers: Processes.
    """

    def __init__(self, job: Job[Batch, Result], num_workers: int) -> None:
        theirs: list[Ends] = []
        self._workers: list[_Worker] = []
        for _ in range(num_workers):
            tasks, tasks_for_us = os.pipe()
            results_for_us, results = os.pipe()
            _widen(tasks)
            _widen(results)
            theirs.append(Ends(tasks, results))
            self._workers.append(_Worker(tasks_for_us, results_for_us))
        self._process = start_processes(job, theirs)
        for ends in theirs:
            for end in ends:
                os.close(end)
        for worker in self._workers:
            worker.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def map(self, batches: Iterable[Batch]) -> Iterator[Result]:
        """The result of every batch, as `map_batches` gives them; the processes end behind the last.

        Args:
            batches: The batches.

        Returns:
            The results, one after another.
        """
        rest = iter(batches)
        with ExitStack() as stack:
            stack.callback(self.close)
            waiting = deque(map(self._submit, islice(rest, _WAITING_PER_WORKER * len(self._workers))))
            stack.pop_all()  # from here on the results close it
        return self._in_order(waiting, rest)

    def close(self) -> None:
        """End the processes, and wait until they have ended."""
        for worker in self._workers:
            worker.end()
        try:
            self._process.wait(_END_S)
        except TimeoutExpired:  # it is still loading, and looks for nothing else
            self._process.terminate()
            self._process.wait()
        for worker in self._workers:
            worker.join()
        self._workers = []

    def _submit(self, batch: Batch) -> "Future[Result]":
        return min(self._workers, key=lambda worker: worker.num_waiting).submit(batch)

    def _in_order(self, waiting: "deque[Future[Result]]", rest: Iterator[Batch]) -> Iterator[Result]:
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(map(self._submit, islice(rest, 1)))
                yield result
        except BrokenPipeError as exc:
            raise DataError(
                "workers: a process was ended from outside, mostly for want of memory; use fewer with --workers"
            ) from exc
        finally:
            self.close()


class _Worker:
    """This process's side of one that works.

    Args:
        tasks: The end for writing of the pipe for what is to be done.
        results: The end for reading of the pipe for what came of it.
    """

    def __init__(self, tasks: int, results: int) -> None:
        self._tasks = tasks
        self._results = results
        self._waiting: deque[Future[Any]] = deque()
        self._lock = threading.Lock()
        self._has_ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)

    @property
    def num_waiting(self) -> int:
        """Batches that it has and has not finished."""
        return len(self._waiting)

    def start(self) -> None:
        """Begin to read results."""
        self._reader.start()

    def submit(self, batch: Any) -> "Future[Any]":
        """Send a batch.

        Args:
            batch: The batch.

        Returns:
            Its result later, or `BrokenPipeError` if the process ended.
        """
        future: Future[Any] = Future()
        with self._lock:
            if self._has_ended:
                future.set_exception(BrokenPipeError())
                return future
            self._waiting.append(future)
        with suppress(BrokenPipeError):  # the reader says so of everything that waits
            send(self._tasks, batch)
        return future

    def end(self) -> None:
        """Say that nothing comes any more; what it has not finished is given up."""
        os.close(self._tasks)

    def join(self) -> None:
        """Wait until it has ended."""
        self._reader.join()
        os.close(self._results)

    def _read(self) -> None:
        try:
            while True:
                outcome = receive(self._results)
                future = self._waiting.popleft()
                if outcome.is_error:
                    future.set_exception(outcome.value)
                else:
                    future.set_result(outcome.value)
        except EOFError:
            pass
        finally:
            with self._lock:
                self._has_ended = True
            for future in self._waiting:
                future.set_exception(BrokenPipeError())


def _widen(pipe: int) -> None:
    """Let a pipe hold a whole batch or result, so that who has sent it can go on before it is read."""
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with suppress(PermissionError):  # more than this user may have; it works all the same
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
