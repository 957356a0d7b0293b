# SPDX-License-Identifier: Apache-2.0
"""A failure is shown once: by the process, by rank 0, or by the launcher that reads the rank's report."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from primus.cli import failures

CHECKOUT = Path(__file__).parents[3]
VARIABLES = ("RANK", failures.ERROR_FILE_VARIABLE, failures.LAUNCHER_VARIABLE)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_a_process_of_its_own_prints_one_line_per_problem(capsys: pytest.CaptureFixture[str]) -> None:
    failures.report(["a.jsonl:1: first\nand more", "a.jsonl:2: second"], exit_code=2)
    assert capsys.readouterr().err == "a.jsonl:1: first and more\na.jsonl:2: second\n"


def test_under_torchrun_rank_0_prints_and_every_rank_leaves_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(failures.ERROR_FILE_VARIABLE, str(tmp_path / "error.json"))
    for rank, printed in (("0", "bad\n"), ("3", "")):
        monkeypatch.setenv("RANK", rank)
        failures.report(["bad"], exit_code=2)
        assert capsys.readouterr().err == printed
        message = json.loads((tmp_path / "error.json").read_text())["message"]
        # The names that torchrun's agent reads.
        assert message["message"] == "bad"
        assert message["extraInfo"]["py_callstack"] == "bad"
        assert int(message["extraInfo"]["timestamp"]) == int(message["extraInfo"]["time"])


def test_under_the_launcher_no_rank_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(failures.ERROR_FILE_VARIABLE, str(tmp_path / "error.json"))
    monkeypatch.setenv(failures.LAUNCHER_VARIABLE, "1")
    monkeypatch.setenv("RANK", "0")
    failures.report(["bad"], exit_code=2)
    assert capsys.readouterr().err == ""
    assert [path.name for path in tmp_path.iterdir()] == ["error.json"]


def test_under_another_launcher_a_rank_gives_its_number(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "2")
    failures.report(["bad", "worse"], exit_code=2)
    assert capsys.readouterr().err == "[rank 2] bad\n[rank 2] worse\n"


def test_a_rank_ends_when_its_launcher_was_killed() -> None:
    rank = (
        "import time; from primus.cli import failures;"
        "failures.end_with_launcher(); print('up', flush=True); time.sleep(300)"
    )
    launcher = (
        "import os, subprocess, sys; os.environ['PRIMUS_LAUNCHER_PID'] = str(os.getpid());"
        f"subprocess.run([sys.executable, '-c', {rank!r}])"
    )
    process = subprocess.Popen([sys.executable, "-c", launcher], cwd=CHECKOUT, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        ranks = psutil.Process(process.pid).children()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        _, alive = psutil.wait_procs(ranks, timeout=60)
        assert alive == []
    finally:
        process.kill()
        assert process.stdout is not None
        process.stdout.close()
