# SPDX-License-Identifier: Apache-2.0
"""One process at a time; the others wait, are told for whom, and go on however the first one ended."""

import fcntl
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

import primus.sft.prepared.lock
from primus.errors import DataError
from primus.sft.prepared.lock import hold

HOLDER = """
import sys, time
from pathlib import Path
from primus.errors import DataError
from primus.sft.prepared.lock import hold
with hold(Path(sys.argv[1]), on_wait=print):
    print("held", flush=True)
    sys.stdin.readline()
    if sys.argv[2] == "fail":
        raise DataError("a.jsonl:3: is bad; repair it", "a.jsonl:9: too")
"""


def start_holder(path: Path, how: str = "end") -> "subprocess.Popen[str]":
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def end(holder: "subprocess.Popen[str]", *, kills: bool = False) -> None:
    if kills:
        holder.kill()
    holder.communicate("\n")


@pytest.mark.parametrize("kills", [False, True])
def test_the_second_waits_and_then_holds_it(tmp_path: Path, kills: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(primus.sft.prepared.lock, "SECONDS_BETWEEN_MESSAGES", 0.2)
    path = tmp_path / "deep" / "a.lock"
    holder = start_holder(path)
    messages: list[str] = []
    timer = threading.Timer(0.7, end, [holder], {"kills": kills})
    started_s = time.monotonic()
    timer.start()
    with hold(path, on_wait=messages.append):
        assert time.monotonic() - started_s >= 0.7
    timer.join()
    assert 2 <= len(messages) <= 8
    assert set(messages) == {f"{path}: waiting for process {holder.pid} on {socket.gethostname()}"}
    assert list(path.parent.iterdir()) == []


def test_who_waited_for_one_that_failed_fails_with_it(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    holder = start_holder(path, "fail")
    threading.Timer(0.5, end, [holder]).start()
    with pytest.raises(DataError) as caught, hold(path, on_wait=lambda _: None):
        raise AssertionError("held")
    assert caught.value.problems == ("a.jsonl:3: is bad; repair it", "a.jsonl:9: too")
    with hold(path, on_wait=print):  # who comes later tries for himself
        pass


def test_what_a_killed_process_left_is_not_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    end(start_holder(path), kills=True)
    assert path.exists()
    messages: list[str] = []
    with hold(path, on_wait=messages.append):
        pass
    assert messages == []
    assert not path.exists()


def test_never_two_at_once(tmp_path: Path) -> None:
    """Locks that are held and removed by turns, as fast as that goes."""
    code = """
import os, sys, time
from pathlib import Path
from primus.sft.prepared import lock
lock._SECONDS_BETWEEN_TRIES = 0.0005
here = Path(sys.argv[1])
for _ in range(60):
    with lock.hold(here / "a.lock", on_wait=lambda _: None):
        descriptor = os.open(here / "alone", os.O_CREAT | os.O_EXCL)  # fails if anybody else is here
        time.sleep(0.0005)
        os.close(descriptor)
        (here / "alone").unlink()
"""
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0, 0, 0, 0]


def test_a_place_without_permission_or_locks_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    stack = ExitStack()
    with pytest.raises(
        DataError, match=r"can't be written \((File exists|Not a directory)\); name a folder that can be written"
    ):
        stack.enter_context(hold(tmp_path / "file" / "a.lock", on_wait=print))

    def refuse(*_: object) -> None:
        raise OSError(38, os.strerror(38))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(DataError, match=r"can't be locked \(Function not implemented\), so two processes might"):
        stack.enter_context(hold(tmp_path / "a.lock", on_wait=print))
