# SPDX-License-Identifier: Apache-2.0
"""Several ranks under the launcher: whose failure is shown, with which exit code, and that nobody is left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

CHECKOUT = Path(__file__).parents[4]

_LAUNCH = """
import json, os, sys, time
from primus.backends.megatron.launch import launch_ranks
outcomes = {}
for name, code in json.loads(sys.argv[1]).items():
    start = time.monotonic()
    outcome = launch_ranks([sys.executable, "-c", code], num_ranks=2, launcher_variable="PRIMUS_LAUNCHER_PID")
    outcomes[name] = (outcome.exit_code, outcome.report, time.monotonic() - start)
print(json.dumps(outcomes))
"""
_REPORT = """
import os, pathlib, signal, sys, time
from primus.cli.failures import report
rank = int(os.environ["RANK"])
def wait_for_rank_1(name):
    while not pathlib.Path(os.environ["OUT"], name).exists():
        time.sleep(0.01)
    time.sleep(0.1)
def tell_rank_0(name):
    pathlib.Path(os.environ["OUT"], name).touch()
"""
_ENDS_BY_SIGNAL = """
if rank:
    tell_rank_0("{name}")
    os.kill(os.getpid(), signal.{name})
wait_for_rank_1("{name}")
report(["lost the peer"], exit_code=1)
sys.exit(1)
"""
CODES = {
    "all well": "import os, pathlib; pathlib.Path(os.environ['OUT'], os.environ['RANK']).write_text("
    "f\"{os.environ['OMP_NUM_THREADS']} {os.environ['WORLD_SIZE']} {os.environ['PRIMUS_LAUNCHER_PID']}\")",
    "one fails, the other waits": "import os, sys, time; os.environ['RANK'] == '1' or time.sleep(60); sys.exit(7)",
    "rank 1 fails, and rank 0 because of it": _REPORT
    + "rank or wait_for_rank_1('report'); report([f'rank {rank} says why'], exit_code=2 if rank else 1);"
    + "rank and tell_rank_0('report'); time.sleep(rank); sys.exit(1)",
    "rank 1 crashes, and rank 0 because of it": _REPORT + _ENDS_BY_SIGNAL.format(name="SIGSEGV"),
    "rank 1 is killed, and rank 0 fails because of it": _REPORT + _ENDS_BY_SIGNAL.format(name="SIGKILL"),
    "rank 1 reports, and rank 0 does not end": _REPORT
    + "import signal; rank or signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(0.3 * rank);"
    + "rank and report(['rank 1 says why'], exit_code=2); time.sleep(0 if rank else 60); sys.exit(2)",
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def outcomes(out: Path) -> dict[str, Any]:
    """What the launcher says of each of the programs, all run by one launcher process."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", _LAUNCH, json.dumps(CODES)],
        cwd=CHECKOUT,
        env={**environment, "OUT": str(out), "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "2"},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert done.stderr == ""
    outcomes: dict[str, Any] = json.loads(done.stdout)
    return outcomes


def test_ranks_know_their_place_and_share_the_cores(outcomes: dict[str, Any], out: Path) -> None:
    assert outcomes["all well"][:2] == [0, ""]
    threads, world_size, launcher = (out / "1").read_text().split()
    assert int(threads) == max(1, len(os.sched_getaffinity(0)) // 2)
    assert world_size == "2"
    assert (out / "0").read_text() == (out / "1").read_text()
    assert launcher.isdecimal()


def test_the_exit_code_of_the_failed_rank_is_passed_on_and_the_others_are_ended(outcomes: dict[str, Any]) -> None:
    exit_code, report, seconds = outcomes["one fails, the other waits"]
    assert (exit_code, report) == (7, "rank 1: ended with exit code 7 and left no report")
    assert seconds < 20


def test_the_report_of_the_rank_that_failed_first_is_shown_even_if_it_has_not_ended(outcomes: dict[str, Any]) -> None:
    assert outcomes["rank 1 fails, and rank 0 because of it"][:2] == [2, "rank 1 says why"]


def test_a_crash_comes_before_the_reports_that_follow_from_it(outcomes: dict[str, Any]) -> None:
    assert outcomes["rank 1 crashes, and rank 0 because of it"][:2] == [139, "rank 1: killed by SIGSEGV"]


def test_a_killed_rank_is_named_with_the_usual_reason(outcomes: dict[str, Any]) -> None:
    exit_code, report, _ = outcomes["rank 1 is killed, and rank 0 fails because of it"]
    assert (exit_code, report) == (137, "rank 1: killed by SIGKILL, as the system does when memory is out")


def test_a_rank_that_the_launcher_had_to_kill_is_not_blamed(outcomes: dict[str, Any]) -> None:
    assert outcomes["rank 1 reports, and rank 0 does not end"][:2] == [2, "rank 1 says why"]


@pytest.mark.parametrize(
    ("number", "exit_code", "report"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "stopped by SIGTERM")],
)
def test_a_signal_is_passed_on_and_no_process_is_left(number: int, exit_code: int, report: str) -> None:
    # Each rank has a child of its own, as data loaders are.
    code = "import subprocess, sys; subprocess.run(['sleep', '60'])"
    launcher = subprocess.Popen(
        [sys.executable, "-c", _LAUNCH, json.dumps({"ranks": code})],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        processes = _descendants(launcher.pid, at_least=4)
        launcher.send_signal(number)
        stdout, stderr = launcher.communicate(timeout=60)
    finally:
        launcher.kill()
    assert json.loads(stdout)["ranks"][:2] == [exit_code, report]
    assert "death signal" not in stderr
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert alive == []


def _descendants(pid: int, *, at_least: int) -> list[psutil.Process]:
    """The processes that a process started, and theirs, as soon as there are so many."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        processes: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
        if len(processes) >= at_least:
            return processes
        time.sleep(0.05)
    raise AssertionError(f"fewer than {at_least} processes were started")
