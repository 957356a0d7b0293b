# SPDX-License-Identifier: Apache-2.0
"""Several ranks on this machine, started and watched by torchrun's agent.

What torchrun itself leaves to the caller is done here: the report of the rank that failed first instead of a table of
all of them, that rank's exit code instead of 1, and no rank left behind.
"""

import logging
import os
import signal
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

_CRASHES = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP})


@dataclass(frozen=True, kw_only=True)
class LaunchOutcome:
    """How a run of several ranks ended."""

    exit_code: int
    """0, or the exit code of the rank that failed first; 128 + n if signal n stopped that rank or the launcher."""
    report: str = ""
    """What that rank had to say; empty if all went well."""


def launch_ranks(command: Sequence[str], *, num_ranks: int, launcher_variable: str) -> LaunchOutcome:
    """Run a command as `num_ranks` ranks of this machine, and wait for them.

    Every rank is a session of its own, so that a signal reaches it through the launcher only, and with all the
    processes it started: SIGINT, SIGTERM and SIGHUP are passed on, and whoever has not ended after 30 s
    (TORCH_ELASTIC_SHUTDOWN_TIMEOUT) is killed. When a rank fails the others are ended.

    Args:
        command: Program and arguments; each rank finds its number in RANK, as under torchrun.
        num_ranks: Ranks to start.
        launcher_variable: Environment variable that tells a rank the launcher's process id.

    Returns:
        How it ended, when no rank is left.
    """
    os.environ[launcher_variable] = str(os.getpid())
    # Ranks that take all cores each are slower than one rank.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _num_cores() // num_ranks)))
    _silence_agent()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_ranks,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        signals_to_handle="SIGTERM,SIGINT,SIGHUP",
    )
    try:
        elastic_launch(config, command[0])(*command[1:])
    except ChildFailedError as error:
        return _first_failure(error.failures)
    except SignalException as stop:
        name = "interrupted" if stop.sigval is signal.SIGINT else f"stopped by {stop.sigval.name}"
        return LaunchOutcome(exit_code=128 + stop.sigval, report=name)
    return LaunchOutcome(exit_code=0)


def _silence_agent() -> None:
    """Keep the agent from telling every failure in its own words; its modules' loggers have levels of their own."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _first_failure(failures: Mapping[int, ProcessFailure]) -> LaunchOutcome:
    """Tell the failure that came first from those that followed from it.

    A crash leaves no report and breaks the other ranks' connections, so it comes before any report; reports are ordered
    by their time. SIGKILL may be the system's, out of memory, or the agent's, for a rank that would not end: it is
    blamed if nobody reports anything, and mentioned in any case. The agent's SIGTERM is nobody's failure.
    """
    crashed = [rank for rank, failure in failures.items() if -failure.exitcode in _CRASHES]
    reports = {rank: failure.error_file_data["message"] for rank, failure in failures.items()}
    reported = [rank for rank, report in reports.items() if isinstance(report, dict)]
    killed = [rank for rank, failure in failures.items() if -failure.exitcode == signal.SIGKILL]
    if crashed:
        rank = min(crashed)
        report = f"rank {rank}: killed by {failures[rank].signal_name()}"
    elif reported:
        rank = min(reported, key=lambda rank: float(reports[rank]["extraInfo"]["time"]))
        report = str(reports[rank]["message"])
    else:
        rank = min(killed or failures, key=lambda rank: (-failures[rank].exitcode == signal.SIGTERM, rank))
        report = f"rank {rank}: ended with exit code {failures[rank].exitcode} and left no report"
    notes = [f"rank {rank}: killed by SIGKILL, as the system does when memory is out" for rank in killed]
    code = failures[rank].exitcode
    return LaunchOutcome(exit_code=code if code > 0 else 128 - code, report="\n".join([report, *notes]))


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
