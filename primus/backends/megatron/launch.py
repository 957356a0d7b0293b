# SPDX-License-Identifier: Apache-2.0
"""Several ranks on this machine, started and watched by torchrun's agent.

What torchrun itself leaves to the caller is done here: the report of the rank that failed first instead of a table of
all of them, that rank's exit code instead of 1, and no rank left behind.
"""

import logging
import math
import os
import signal
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

_STOP_TIMEOUT_S = 600
# torch/distributed/elastic/agent/server/local_elastic_agent.py: how long _stop_workers waits
_AGENT_TIMEOUT_S = 30


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
    processes it started: SIGINT, SIGTERM, SIGUSR1 and SIGHUP are passed on. Ranks take SIGTERM and SIGUSR1 as a wish to
    save and stop, so whoever has not ended is killed only after 10 minutes, or after as many seconds as
    TORCH_ELASTIC_SHUTDOWN_TIMEOUT says. When a rank fails the others are ended, and killed after 30 s.

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
        signals_to_handle="SIGTERM,SIGINT,SIGHUP,SIGUSR1",
        shutdown_timeout=int(os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", _STOP_TIMEOUT_S)),
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

    A rank that a signal ends leaves no report and breaks the other ranks' connections, so it comes before any report;
    reports are ordered by their time. Two signals are the agent's: SIGTERM, which ends the others, and SIGKILL for one
    that has not ended so long after it. A rank that has come to a clean stop because of the former has not failed.
    """
    reports = {
        rank: failure.error_file_data["message"]
        for rank, failure in failures.items()
        if isinstance(failure.error_file_data["message"], dict)
    }
    first_report_s = min((float(report["extraInfo"]["time"]) for report in reports.values()), default=math.inf)
    agent_signals = {signal.SIGTERM}
    if time.time() - first_report_s >= _AGENT_TIMEOUT_S:
        agent_signals.add(signal.SIGKILL)
    for rank, failure in sorted(failures.items()):
        number = -failure.exitcode
        if number > 0 and number not in agent_signals:
            why = ", as the system does when memory is out" if number == signal.SIGKILL else ""
            return LaunchOutcome(exit_code=128 + number, report=f"rank {rank}: killed by {failure.signal_name()}{why}")
    for report in reports.values():
        extra = report["extraInfo"]
        if float(extra["time"]) == first_report_s:
            return LaunchOutcome(exit_code=int(extra["exit_code"]), report=str(report["message"]))
    stopped = 128 + signal.SIGTERM
    rank, failure = min(failures.items(), key=lambda item: (item[1].exitcode in {stopped, -signal.SIGTERM}, item[0]))
    code = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    return LaunchOutcome(exit_code=code, report=f"rank {rank}: ended with exit code {code} and left no report")


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
