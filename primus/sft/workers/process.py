# SPDX-License-Identifier: Apache-2.0
"""What runs in the processes that work: the first loads, the others are forked from it, and all do the same then."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, NoReturn

from primus.errors import PrimusError
from primus.sft.workers.job import Job
from primus.sft.workers.messages import receive, send

# The processes share the cores; threads of each would only get in each other's way, and can't be forked.
_ONE_THREAD = {
    "FASTOKENS_BPE_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
    "from primus.sft.workers.process import main; main(json.loads(sys.argv[2]))"
)
_THREADS = Path("/proc/self/task")


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


def start_processes(job: Job[Any, Any], ends: Sequence[Ends]) -> "subprocess.Popen[bytes]":
    """Start processes that work until their tasks end.

    Args:
        job: What they do.
        ends: The ends of the pipes of each; this process can close them then.

    Returns:
        The first process. It ends when all have ended.
    """
    before = None
    if hasattr(signal, "pthread_sigmask"):
        # Ctrl-C does not reach it before it ignores it: it is for the process that waits for the results.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", _PROGRAM, json.dumps(sys.path), json.dumps(ends)],
            stdin=subprocess.PIPE,
            pass_fds=[end for of_one in ends for end in of_one],
            env={**os.environ, **_ONE_THREAD},
        )
    finally:
        if before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert process.stdin is not None
    try:
        with process.stdin:
            send(process.stdin.fileno(), job)
    except BrokenPipeError:
        pass  # it has ended, as its pipes tell
    return process


def main(ends: Sequence[Sequence[int]]) -> None:
    """Load what the job needs, fork, and work.

    Args:
        ends: The `Ends` of each process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    own, *others = (Ends(*of_one) for of_one in ends)
    _report_to(own.results)
    job = receive(sys.stdin.fileno())
    try:
        function = job.start_for_many()
    except PrimusError as exc:
        function = _Failed(exc)
    children: list[int] = []
    for index, of_other in enumerate(others):
        if not _may_fork():
            children.append(start_processes(job, [of_other]).pid)
            continue
        pid = os.fork()
        if pid == 0:
            _report_to(of_other.results)
            _close([own, *others[:index], *others[index + 1 :]])
            _work(function, of_other, children=())
        children.append(pid)
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
    for _ in range(20):
        if len(list(_THREADS.iterdir())) == 1:
            return True
        time.sleep(0.01)  # one that was joined may take a moment longer to be gone
    return False


def _close(ends: Sequence[Ends]) -> None:
    for of_one in ends:
        for end in of_one:
            os.close(end)


def _report_to(results: int) -> None:
    """Send what nobody expected to the process that waits for results, before it ends this one."""

    def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        text = "".join(traceback.format_exception(kind, error, trace))
        send(results, Outcome(RuntimeError(f"in a process that works for this one:\n{text}"), is_error=True))

    sys.excepthook = report


def _work(function: Callable[[Any], Any], ends: Ends, *, children: Sequence[int]) -> NoReturn:
    """Do what comes, until nothing can come any more."""
    tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_take_in, args=(ends.tasks, tasks, children), daemon=True).start()
    while True:
        task = tasks.get()
        try:
            outcome = Outcome(function(task), is_error=False)
        except PrimusError as exc:
            outcome = Outcome(exc, is_error=True)
        try:
            send(ends.results, outcome)
        except BrokenPipeError:
            threading.Event().wait()  # nobody asks any more, so this process is about to end


def _take_in(pipe: int, tasks: "queue.SimpleQueue[Any]", children: Sequence[int]) -> None:
    """Read tasks while others are done; end this process when the one that sends them is gone, even by SIGKILL."""
    while True:
        try:
            tasks.put(receive(pipe))
        except EOFError:
            break
    for pid in children:
        os.waitpid(pid, 0)
    os._exit(0)
