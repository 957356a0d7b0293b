# SPDX-License-Identifier: Apache-2.0
"""What runs in the processes that work: the first loads, the others are forked from it, and all do the same then."""

import fcntl
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, TypeAlias, cast

from primus.errors import PrimusError
from primus.sft.workers.messages import Message, receive, send

# The processes share the cores; threads of each would only get in each other's way, and can't be forked.
_ONE_THREAD = {
    "FASTOKENS_BPE_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
# Nothing is imported before the path is that of the process that starts it: the current folder is on it by default.
_PROGRAM = (
    "import sys; n = int(sys.argv[1]); sys.path[:] = sys.argv[2:2 + n];"
    "from primus.sft.workers.process import main; main(*map(int, sys.argv[2 + n:]))"
)
_THREADS = Path("/proc/self/task")
_JOINED_S = 0.5
_LAST_STANDARD = 2


Wait: TypeAlias = Callable[[], object]
"""Waits until a process has ended."""


class Ends(NamedTuple):
    """The ends of the pipes of a process that works."""

    tasks: int
    """What is to be done comes from here."""
    results: int
    """What came of it goes here."""


class Outcome(NamedTuple):
    """What came of a batch."""

    value: Any
    """The result, or the error."""
    is_error: bool
    """Which of them."""


def new_pipe() -> tuple[int, int]:
    """A pipe, with none of the numbers of standard input and output, even if those are closed.

    Returns:
        The end for reading, and that for writing.
    """
    return cast("tuple[int, int]", tuple(map(_lifted, os.pipe())))


def _lifted(end: int) -> int:
    if end > _LAST_STANDARD:
        return end
    lifted = fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, _LAST_STANDARD + 1)
    os.close(end)
    return lifted


def start_process(ends: Sequence[Ends], *, is_leader: bool = True) -> "tuple[subprocess.Popen[bytes], int]":
    """Start a process that waits for a job, starts the others, and works until the tasks end.

    Args:
        ends: The ends of the pipes of each process; this one can close them then.
        is_leader: Whether it and those that it starts are a group of their own, which Ctrl-C does not reach and which
            can be ended together.

    Returns:
        The process, which ends when all have ended; and the pipe that it takes the job from, for `send`.
    """
    job_for_it, job = new_pipe()
    path = list(map(str, sys.path))
    numbers = [job_for_it, *(end for of_one in ends for end in of_one)]
    try:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", _PROGRAM, str(len(path)), *path, *map(str, numbers)],
            stdin=subprocess.DEVNULL,
            pass_fds=numbers,
            env={**os.environ, **_ONE_THREAD},
            start_new_session=is_leader,
        )
    finally:
        os.close(job_for_it)
    return process, job


def main(job_from: int, *numbers: int) -> None:
    """Load what the job needs, fork, and work.

    Args:
        job_from: The pipe that the job comes from.
        *numbers: The `Ends` of each process, one behind another.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits for the results
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # which may be ignored by who started that one
    own, *others = (Ends(*pair) for pair in zip(numbers[::2], numbers[1::2], strict=True))
    _report_to(own.results)
    message = receive(job_from)
    os.close(job_from)
    if message is None:
        return
    job = message.unpack()
    try:
        function = job.start()
    except PrimusError as exc:
        function = _Failed(exc)
    may_fork = bool(others) and _may_fork()
    children: list[Wait] = []
    for index, of_other in enumerate(others):
        if not may_fork:
            process, job_for_other = start_process([of_other], is_leader=False)
            with suppress(BrokenPipeError):
                send(job_for_other, job)
            os.close(job_for_other)
            children.append(process.wait)
            continue
        pid = os.fork()
        if pid == 0:
            _report_to(of_other.results)
            _close([own, *others[:index], *others[index + 1 :]])
            _work(function, of_other, children=())
        children.append(partial(os.waitpid, pid, 0))
    _close(others)
    _work(function, own, children=children)


class _Failed:
    """Raises at every batch what was raised when the function was loaded."""

    def __init__(self, error: PrimusError) -> None:
        self._error = error

    def __call__(self, _: Any) -> Any:
        raise self._error


def _may_fork() -> bool:
    """Whether this is a process of one thread, on a system where forking such a one is safe."""
    if sys.platform != "linux" or not _THREADS.is_dir():
        return False
    until_s = time.monotonic() + _JOINED_S
    while len(list(_THREADS.iterdir())) > 1:
        if time.monotonic() > until_s:
            return False
        time.sleep(0.005)  # one that was joined may take a moment longer to be gone
    return True


def _close(ends: Sequence[Ends]) -> None:
    for of_one in ends:
        for end in of_one:
            os.close(end)


def _report_to(results: int) -> None:
    """Send what nobody expected to the process that waits for results, before it ends this one."""

    def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        text = "".join(traceback.format_exception(kind, error, trace))
        with suppress(BrokenPipeError):
            send(results, Outcome(RuntimeError(f"in a process that works for this one:\n{text}"), is_error=True))

    sys.excepthook = report


def _work(function: Callable[[Any], Any], ends: Ends, *, children: "Sequence[Wait]") -> NoReturn:
    """Do what comes, until nothing can come any more."""
    tasks: queue.SimpleQueue[Message] = queue.SimpleQueue()
    threading.Thread(target=_take_in, args=(ends.tasks, tasks, children), daemon=True).start()
    while True:
        task = tasks.get().unpack()
        try:
            outcome = Outcome(function(task), is_error=False)
        except PrimusError as exc:
            outcome = Outcome(exc, is_error=True)
        try:
            send(ends.results, outcome)
        except BrokenPipeError:
            threading.Event().wait()  # nobody asks any more, so this process is about to end


def _take_in(pipe: int, tasks: "queue.SimpleQueue[Message]", children: "Sequence[Wait]") -> None:
    """Read tasks while others are done; end this process when the one that sends them is gone, even by SIGKILL."""
    exit_code = 1
    try:
        while (message := receive(pipe)) is not None:
            tasks.put(message)
        for wait in children:
            wait()
        exit_code = 0
    finally:
        os._exit(exit_code)  # also when there is no memory left to read into: nothing could come any more
