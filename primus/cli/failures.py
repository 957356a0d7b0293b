# SPDX-License-Identifier: Apache-2.0
"""How a failure reaches the person who started the run, once, however many ranks fail.

A process of its own prints to stderr. A rank also leaves its report in the file that torchrun's agent names
(TORCHELASTIC_ERROR_FILE, in the form of `torch.distributed.elastic.multiprocessing.errors.record`): when several ranks
fail, mostly because the first one did, the agent picks the first. Under this project's own launcher ranks stay silent
and the launcher prints that report; under plain torchrun rank 0 prints and the agent reports the rest; under another
launcher (Slurm, MPI) every rank prints, with its number.
"""

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

ERROR_FILE_VARIABLE = "TORCHELASTIC_ERROR_FILE"
LAUNCHER_VARIABLE = "PRIMUS_LAUNCHER_PID"
_PROGRAM_FAULT = 1
_ORPHANED = 143


def report(problems: Sequence[str], *, exit_code: int) -> None:
    """Show problems of the user, one line each.

    Args:
        problems: What is wrong.
        exit_code: The code that this process will end with.
    """
    _report("\n".join(" ".join(problem.splitlines()) for problem in problems), exit_code=exit_code)


def report_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Show the traceback of a fault of the program; serves as `sys.excepthook`."""
    _report("".join(traceback.format_exception(kind, error, trace)).rstrip(), exit_code=_PROGRAM_FAULT)


def current_rank() -> int | None:
    """This process's rank if a launcher started it, else None."""
    return _number("RANK")


def world_size() -> int:
    """Ranks of the run that this process belongs to."""
    return _number("WORLD_SIZE") or 1


def _number(variable: str) -> int | None:
    """A launcher's variable; one that is no number is the trainer's to complain about."""
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else None


def end_with_launcher() -> None:
    """End this process when the launcher is gone, even by SIGKILL: nobody would read its exit code or free its GPU."""
    if LAUNCHER_VARIABLE in os.environ:
        launcher = int(os.environ[LAUNCHER_VARIABLE])
        threading.Thread(target=_wait_for_end_of, args=(launcher,), daemon=True).start()


def _wait_for_end_of(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(0.5)
    os._exit(_ORPHANED)


def _report(text: str, *, exit_code: int) -> None:
    rank, error_file = current_rank(), os.environ.get(ERROR_FILE_VARIABLE)
    if rank is not None and error_file is not None:
        _write_error_file(Path(error_file), text, exit_code=exit_code)
        if rank != 0 or LAUNCHER_VARIABLE in os.environ:
            return
    elif rank:
        text = "\n".join(f"[rank {rank}] {line}" for line in text.splitlines())
    print(text, file=sys.stderr, flush=True)


def _write_error_file(path: Path, text: str, *, exit_code: int) -> None:
    now = time.time()
    # The agent reads whole seconds and shows `py_callstack`. The launcher of this project orders by `time`, and ends
    # with `exit_code`, since the agent may stop a rank that has reported before it has ended.
    extra = {"py_callstack": text, "timestamp": str(int(now)), "time": now, "exit_code": exit_code}
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(json.dumps({"message": {"message": text, "extraInfo": extra}}), encoding="utf-8")
    unfinished.rename(path)
