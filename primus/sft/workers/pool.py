# SPDX-License-Identifier: Apache-2.0
"""Processes that work for this one, and what they are sent."""

import errno
import fcntl
import os
import resource
import signal
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from subprocess import Popen, TimeoutExpired
from types import TracebackType
from typing import Any, Generic

from typing_extensions import Self

from primus.errors import DataError
from primus.sft.workers.job import Batch, Job, Result
from primus.sft.workers.messages import Message, receive, send
from primus.sft.workers.process import Ends, new_pipe, start_process

# Batches that wait for each process: enough that none is idle, few enough that memory stays flat.
_WAITING_PER_WORKER = 3
_PIPE_BYTES = 1 << 20
# A user has 64 MiB of pipes; with more processes each would only have less than without asking.
_MOST_WIDE = 16
_FILES_PER_WORKER, _OTHER_FILES = 4, 64
# How long processes may take to end: those that still load look for nothing else.
_LOADING_END_S, _WORKING_END_S = 0.2, 10.0


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

    Raises:
        DataError: If there may not be as many open files as that takes.
    """

    def __init__(self, job: Job[Batch, Result], num_workers: int) -> None:
        _allow_files(_FILES_PER_WORKER * num_workers + _OTHER_FILES)
        self._workers: list[_Worker] = []
        with ExitStack() as if_it_fails, ExitStack() as theirs, _files_needed(num_workers):
            all_ends = []
            for _ in range(num_workers):
                worker, ends = _connect(is_wide=num_workers <= _MOST_WIDE)
                if_it_fails.callback(worker.end)
                for end in ends:
                    theirs.callback(os.close, end)
                self._workers.append(worker)
                all_ends.append(ends)
            with _interrupts_held_back():
                process, for_job = start_process(all_ends)
                if_it_fails.callback(_kill, process)
                theirs.callback(os.close, for_job)
            with suppress(BrokenPipeError):  # it has ended, as its results tell
                send(for_job, job)
            if_it_fails.pop_all()
        for worker in self._workers:
            worker.start()
        # Also when nobody closes it.
        self._process = process
        self._end = weakref.finalize(self, _end, self._workers, process)

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
        """End the processes, and wait until they have ended; what they have not finished is given up."""
        self._end()

    def _submit(self, batch: Batch) -> "Future[Message]":
        return min(self._workers, key=lambda worker: worker.num_waiting).submit(batch)

    def _in_order(self, waiting: "deque[Future[Message]]", rest: Iterator[Batch]) -> Iterator[Result]:
        try:
            while waiting:
                outcome = waiting.popleft().result().unpack()
                if outcome.is_error:
                    raise outcome.value
                waiting.extend(map(self._submit, islice(rest, 1)))
                yield outcome.value
        except _HasEndedError as exc:
            self.close()
            for worker in self._workers:
                if worker.last_words is not None:
                    raise worker.last_words.unpack().value from exc
            raise DataError(
                "workers: a process was ended from outside, mostly for want of memory; use fewer with --workers"
            ) from exc
        finally:
            self.close()


class _HasEndedError(Exception):
    """A process has ended before it gave a result."""


class _Worker:
    """This process's side of one that works.

    Args:
        tasks: The end for writing of the pipe for what is to be done.
        results: The end for reading of the pipe for what came of it.

    Attributes:
        has_answered: Whether it has given a result.
        last_words: Why it ended, if it could say so when nothing was asked of it.
    """

    def __init__(self, tasks: int, results: int) -> None:
        self._tasks: int | None = tasks
        self._results = results
        self._waiting: deque[Future[Message]] = deque()
        self._lock = threading.Lock()
        self._has_ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self.has_answered = False
        self.last_words: Message | None = None

    @property
    def num_waiting(self) -> int:
        """Batches that it has and has not finished."""
        return len(self._waiting)

    def start(self) -> None:
        """Begin to read results."""
        self._reader.start()

    def submit(self, batch: Any) -> "Future[Message]":
        """Send a batch.

        Args:
            batch: The batch.

        Returns:
            Its result later, or `_HasEndedError`.
        """
        future: Future[Message] = Future()
        with self._lock:
            if self._has_ended or self._tasks is None:
                future.set_exception(_HasEndedError())
                return future
            self._waiting.append(future)
        with suppress(BrokenPipeError):  # the reader says so of everything that waits
            send(self._tasks, batch)
        return future

    def end(self) -> None:
        """Say that nothing comes any more; what it has not finished is given up."""
        tasks, self._tasks = self._tasks, None
        if tasks is not None:
            os.close(tasks)
            if not self._reader.ident:
                os.close(self._results)

    def joined(self, timeout_s: float | None = None) -> bool:
        """Wait until it has ended, but not longer than some seconds; whether it has."""
        self._reader.join(timeout_s)
        return not self._reader.is_alive()

    def _read(self) -> None:
        try:
            while (message := receive(self._results)) is not None:
                self.has_answered = True
                if self._waiting:
                    self._waiting.popleft().set_result(message)
                else:
                    self.last_words = message
        finally:
            with self._lock:
                self._has_ended = True
            os.close(self._results)
            for future in self._waiting:
                future.set_exception(_HasEndedError())


def _connect(*, is_wide: bool) -> tuple[_Worker, Ends]:
    """This process's side of one that works, and the ends of its pipes."""
    with ExitStack() as stack:
        tasks, tasks_for_us = new_pipe()
        stack.callback(os.close, tasks)
        stack.callback(os.close, tasks_for_us)
        results_for_us, results = new_pipe()
        stack.pop_all()
    if is_wide and hasattr(fcntl, "F_SETPIPE_SZ"):
        # A whole batch or result fits, so that who has sent it can go on before it is read.
        for end in (tasks, results):
            with suppress(PermissionError):  # more than this user may have; it works all the same
                fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return _Worker(tasks_for_us, results_for_us), Ends(tasks, results)


def _end(workers: "Sequence[_Worker]", process: "Popen[bytes]") -> None:
    for worker in workers:
        worker.end()
    has_loaded = any(worker.has_answered for worker in workers)
    try:
        process.wait(_WORKING_END_S if has_loaded else _LOADING_END_S)
    except TimeoutExpired:
        _kill(process)
    if not all(worker.joined(_LOADING_END_S) for worker in workers):
        _kill(process)
    for worker in workers:
        worker.joined()


def _kill(process: "Popen[bytes]") -> None:
    """End a process and those that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Ctrl-C comes behind the block: in between, nobody would know of the process that is started."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _files_needed(num_workers: int) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno not in {errno.EMFILE, errno.ENFILE}:
            raise
        raise DataError(
            f"workers: {num_workers} processes need more open files than there may be ({exc.strerror}); use fewer with"
            " --workers, or raise the limit with ulimit -n"
        ) from exc


def _allow_files(num_more: int) -> None:
    """Let this process have so many more open files, as far as it may say so itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The limit is one of their numbers.
    wanted = 1 + max(int(file.name) for file in Path("/dev/fd").iterdir()) + num_more
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
