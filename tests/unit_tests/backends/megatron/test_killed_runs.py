# SPDX-License-Identifier: Apache-2.0
"""A run that is killed and continued trains what a run trains that nobody kills, step by step."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

PROGRAM = Path(__file__).with_name("killed_runs.py")
CHECKOUT = Path(__file__).parents[4]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def kill_and_continue(folder: Path, *, num_kills: int, num_steps: int) -> dict[str, Any]:
    """Have tiny runs killed, with any seed, since every moment is to be survived."""
    seed = str(time.time_ns())
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(folder), str(num_kills), seed, str(num_steps)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"seed {seed}: {done.stderr[-4000:]}"
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome


def left_behind(folder: Path) -> list[psutil.Process]:
    def belongs(process: psutil.Process) -> bool:
        try:
            return str(folder) in process.cmdline()
        except psutil.Error:
            return False

    return [process for process in psutil.process_iter() if belongs(process)]


def check(outcome: dict[str, Any], *, num_kills: int, num_steps: int) -> None:
    assert len(outcome["kills"]) == num_kills
    expected = outcome["expected"]
    assert [iteration for iteration, _ in expected] == list(range(1, num_steps + 1))
    assert len({batch_hash for _, batch_hash in expected}) == num_steps
    for found in outcome["found"]:
        assert found == expected


def wait_until(condition: Callable[[], bool]) -> bool:
    until_s = time.monotonic() + 10
    while not condition() and time.monotonic() < until_s:
        time.sleep(0.05)
    return condition()


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("num_kills", "num_steps"), [(3, 6), pytest.param(20, 24, marks=pytest.mark.slow)], ids=["3 kills", "20 kills"]
)
def test_a_run_that_is_killed_and_continued_trains_the_same_batches(
    tmp_path: Path, num_kills: int, num_steps: int
) -> None:
    check(
        kill_and_continue(tmp_path, num_kills=num_kills, num_steps=num_steps), num_kills=num_kills, num_steps=num_steps
    )
    assert wait_until(lambda: not left_behind(tmp_path)), left_behind(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_same_command_goes_on_to_the_same_metrics_to_the_last_bit(tmp_path: Path) -> None:
    options = ["--layouts", "tp2sp+dist,pp2vpp2", "--kills", "3", "--steps", "30", "--folder", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, str(CHECKOUT / "scripts" / "kill_runs.py"), *options],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["tp2sp+dist", "pp2vpp2"]
    assert all("3 kills" in line and "equal to the last bit" in line for line in lines)
