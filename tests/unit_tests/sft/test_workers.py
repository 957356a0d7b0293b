# SPDX-License-Identifier: Apache-2.0
"""The same results, in order, from one process or several; and errors that arrive as they are."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from primus.errors import ConversationError, DataError, TokenizerError
from primus.sft.workers import Job, map_batches, num_cores


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


def test_there_is_at_least_one_core() -> None:
    assert num_cores() >= 1
