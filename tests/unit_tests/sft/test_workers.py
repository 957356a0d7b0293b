# SPDX-License-Identifier: Apache-2.0
"""The same results, in order, from one process or several; and errors that arrive as they are."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import psutil
import pytest

import primus.sft.workers.pool as workers_pool
from primus.errors import ConversationError, DataError, TokenizerError
from primus.sft.workers import Job, WorkerPool, map_batches, num_cores

CHECKOUT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Square(Job[int, tuple[int, int]]):
    fails_at_start: bool = False
    fails_at: int | None = None
    dies_at: int | None = None

    def start(self) -> Callable[[int], tuple[int, int]]:
        if self.fails_at_start:
            raise TokenizerError("t.json: can't be read", "t.json: really not")

        def square(number: int) -> tuple[int, int]:
            if number == self.fails_at:
                raise ConversationError(f"a.jsonl:{number}: is odd", reason="odd")
            if number == self.dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return number * number, os.getpid()

        return square


@pytest.mark.parametrize("num_workers", [1, 2])
def test_results_are_in_the_order_of_the_batches(num_workers: int) -> None:
    results = list(map_batches(Square(), range(50), num_workers=num_workers))
    assert [square for square, _ in results] == [number * number for number in range(50)]
    assert (os.getpid() in {process for _, process in results}) == (num_workers == 1)


def test_only_a_few_batches_are_held_at_a_time() -> None:
    given: list[int] = []

    def batches() -> Iterator[int]:
        for number in range(1000):
            given.append(number)
            yield number

    results = map_batches(Square(), batches(), num_workers=2)
    next(results)
    assert len(given) < 20
    results.close()  # type: ignore[attr-defined]  # a generator


@pytest.mark.parametrize("num_workers", [1, 2])
def test_an_error_while_a_process_starts_arrives_with_all_its_problems(num_workers: int) -> None:
    with pytest.raises(TokenizerError) as caught:
        list(map_batches(Square(fails_at_start=True), [1], num_workers=num_workers))
    assert caught.value.problems == ("t.json: can't be read", "t.json: really not")


@pytest.mark.parametrize("num_workers", [1, 2])
def test_an_error_in_a_batch_arrives_with_its_reason(num_workers: int) -> None:
    with pytest.raises(ConversationError, match=r"^a\.jsonl:7: is odd$") as caught:
        list(map_batches(Square(fails_at=7), range(50), num_workers=num_workers))
    assert caught.value.reason == "odd"


def test_a_process_that_is_killed_is_an_error_of_one_line() -> None:
    with pytest.raises(DataError, match=r"^workers: a process was ended from outside.*--workers$"):
        list(map_batches(Square(dies_at=7), range(50), num_workers=2))


@dataclass(frozen=True)
class Loaded(Job[int, tuple[int, int]]):
    """Gives in which process it was loaded and in which it works."""

    leaves_thread: bool = False

    def start(self) -> Callable[[int], tuple[int, int]]:
        loaded_in = os.getpid()
        if self.leaves_thread:
            threading.Thread(target=threading.Event().wait, daemon=True).start()

        def tell(_: int) -> tuple[int, int]:
            time.sleep(0.02)
            return loaded_in, os.getpid()

        return tell


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")
def test_one_process_loads_for_all() -> None:
    results = set(map_batches(Loaded(), range(30), num_workers=3))
    assert len(results) == 3
    assert len({loaded_in for loaded_in, _ in results}) == 1


def test_a_process_that_can_not_be_forked_starts_the_others() -> None:
    results = set(map_batches(Loaded(leaves_thread=True), range(30), num_workers=2))
    assert len(results) == 2
    assert all(loaded_in == works_in for loaded_in, works_in in results)


def test_no_process_is_left() -> None:
    results = map_batches(Loaded(), range(100), num_workers=3)
    processes = {next(results)[1] for _ in range(20)}
    results.close()  # type: ignore[attr-defined]  # a generator
    assert not any(psutil.pid_exists(process) for process in processes)


@dataclass(frozen=True)
class Slow(Job[int, int]):
    def start(self) -> Callable[[int], int]:
        time.sleep(100)
        raise AssertionError("never")


def test_processes_that_still_load_are_ended() -> None:
    children = set(psutil.Process().children(recursive=True))
    with WorkerPool(Slow(), 2):
        started = set(psutil.Process().children(recursive=True)) - children
        assert len(started) == 1
    assert set(psutil.Process().children(recursive=True)) <= children


def test_processes_that_load_for_themselves_are_ended_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with WorkerPool(SlowToFollow(), 3) as pool:
        until_s = time.monotonic() + 60
        started: list[psutil.Process] = []
        while len(started) < 2 and time.monotonic() < until_s:
            started = psutil.Process(pool._process.pid).children()
            time.sleep(0.01)
        assert len(started) == 2
    # A process that was killed closes its files, which is what is waited for, a moment before it is gone.
    until_s = time.monotonic() + 10
    while any(map(_is_alive, started)) and time.monotonic() < until_s:
        time.sleep(0.01)
    assert not any(map(_is_alive, started))


def _is_alive(process: psutil.Process) -> bool:
    """Whether it is there, and more than an entry that nobody has taken note of."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@dataclass(frozen=True)
class SlowToFollow(Job[int, int]):
    """The first process loads at once, and can't be forked."""

    def start(self) -> Callable[[int], int]:
        if os.getsid(0) == os.getpid():
            threading.Thread(target=threading.Event().wait, daemon=True).start()
            return abs
        time.sleep(100)
        raise AssertionError("never")


def test_an_error_that_nobody_expected_arrives_with_its_place() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)in a process that works for this one:.*test_workers\.py.*TypeError"):
        list(map_batches(Square(), cast("list[int]", ["not a number"]), num_workers=2))
    with pytest.raises(RuntimeError, match=r"(?s)AssertionError: can't be loaded"):
        list(map_batches(NotLoaded(), [1], num_workers=2))


def test_an_error_before_the_first_batch_arrives_with_its_place() -> None:
    pool = WorkerPool(NotLoaded(), 2)
    until_s = time.monotonic() + 60
    while not any(worker.last_words for worker in pool._workers) and time.monotonic() < until_s:
        time.sleep(0.01)
    with pytest.raises(RuntimeError, match=r"(?s)AssertionError: can't be loaded"):
        list(pool.map([1, 2, 3]))


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return _explode, ()


def _explode() -> None:
    raise EOFError("while it was unpacked")


@dataclass(frozen=True)
class GivesBombs(Job[Any, Any]):
    takes: bool = False

    def start(self) -> Callable[[Any], Any]:
        return (lambda _: 1) if self.takes else (lambda _: Bomb())


@pytest.mark.parametrize("takes", [False, True])
def test_what_can_not_be_unpacked_is_an_error_on_both_sides(takes: bool) -> None:
    with pytest.raises(RuntimeError if takes else EOFError, match="while it was unpacked"):
        list(map_batches(GivesBombs(takes), [Bomb() if takes else 1] * 10, num_workers=2))


class Used:
    """Open files, processes and threads of this process."""

    def __init__(self) -> None:
        self.files = {path.name for path in Path("/proc/self/fd").iterdir()}
        self.processes = {child.pid for child in psutil.Process().children(recursive=True)}
        self.threads = set(threading.enumerate())

    def assert_nothing_more(self) -> None:
        now = Used()
        assert now.files <= self.files
        assert now.processes <= self.processes
        assert now.threads <= self.threads


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_nothing_is_left_of_a_pool_that_could_not_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Used()
    with pytest.raises(TypeError, match="pickle"):
        WorkerPool(cast("Job[int, int]", threading.Lock()), 2)
    before.assert_nothing_more()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(workers_pool, "_allow_files", lambda _: None)
    limit = max(map(int, before.files)) + 40
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        with pytest.raises(DataError, match=rf"^workers: {limit} processes need more open files .* use fewer with"):
            WorkerPool(Square(), limit)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    before.assert_nothing_more()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_nothing_is_left_of_results_that_nobody_took() -> None:
    before = Used()
    results = map_batches(Square(), range(50), num_workers=2)
    del results
    before.assert_nothing_more()


def test_few_open_files_are_made_enough() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    kept = [os.open(os.devnull, os.O_RDONLY) for _ in range(300)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(kept) + 8, hard))
    try:
        assert len(list(map_batches(Square(), range(50), num_workers=20))) == 50
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for file in kept:
            os.close(file)


def test_closing_twice_does_nothing() -> None:
    pool = WorkerPool(Square(), 2)
    assert len(list(pool.map(range(10)))) == 10
    pool.close()
    pool.close()


@pytest.mark.parametrize("closed", ["<&-", "<&- >&-", "<&- >&- 2>&-"])
def test_it_works_without_standard_input_and_output(closed: str, tmp_path: Path) -> None:
    """And a module of the current folder does not come before those that are imported."""
    (tmp_path / "json.py").write_text("raise AssertionError('the module of the current folder')")
    out = tmp_path / "out"
    (tmp_path / "program").mkdir()
    program = tmp_path / "program/program.py"
    program.write_text(
        "import pathlib, sys\n"
        f"sys.path.insert(0, {str(CHECKOUT)!r})\n"
        "from primus.sft.workers import map_batches\n"
        "from tests.unit_tests.sft.test_workers import Square\n"
        "squares = [square for square, _ in map_batches(Square(), range(9), num_workers=2)]\n"
        f"pathlib.Path({str(out)!r}).write_text(repr(squares))\n"
    )
    subprocess.run(
        ["sh", "-c", f'exec "$0" "$1" {closed}', sys.executable, program], cwd=tmp_path, timeout=60, check=True
    )
    assert out.read_text() == repr([number * number for number in range(9)])


class NotLoaded(Loaded):
    def start(self) -> Callable[[int], tuple[int, int]]:
        raise AssertionError("can't be loaded")


class Arrays(Job[tuple[npt.NDArray[Any], ...], list[npt.NDArray[Any]]]):
    def start(self) -> Callable[[tuple[npt.NDArray[Any], ...]], list[npt.NDArray[Any]]]:
        return lambda arrays: [array + array.dtype.type(1) for array in arrays]


def test_arrays_of_all_sizes_come_and_go() -> None:
    """Fewer and more parts than go into one call of the system, empty ones, and more bytes than a pipe holds."""
    small = tuple(np.arange(n % 7, dtype=dtype) for n in range(1500) for dtype in ("u1", "<i4", "<i8"))
    large = (np.arange(3_000_001, dtype=np.uint8), np.arange(1_000_003, dtype=np.int64), np.zeros((0, 2)))
    batches = [small, large, (), large, small] * 2
    results = list(map_batches(Arrays(), batches, num_workers=2))
    for arrays, given in zip(results, batches, strict=True):
        assert len(arrays) == len(given)
        assert all(array.flags.aligned for array in arrays)
        assert all(np.array_equal(array, one + one.dtype.type(1)) for array, one in zip(arrays, given, strict=True))


def test_there_is_at_least_one_core() -> None:
    assert num_cores() >= 1
