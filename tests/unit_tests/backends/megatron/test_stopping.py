# SPDX-License-Identifier: Apache-2.0
"""A run that a signal stops saves, and the same command makes what is left."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from primus.backends.megatron.reporting.continuation import MEASURED_FIELDS
from primus.backends.megatron.reporting.metrics import read_metrics
from primus.backends.megatron.stopping import stop_signals_noted
from primus.backends.megatron.training_run import TrainingRun


@pytest.mark.usefixtures("joined")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_noted_inside_the_block_and_the_first_one_counts(number: signal.Signals) -> None:
    handlers = [signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGUSR1)]
    with stop_signals_noted() as request:
        assert request.agreed(torch.device("cpu")) is None
        for name in (number, signal.SIGTERM, signal.SIGUSR1):
            os.kill(os.getpid(), name)
        assert request.agreed(torch.device("cpu")) is number
    assert [signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGUSR1)] == handlers


def test_another_thread_leaves_the_signals_alone() -> None:
    handlers = []

    def enter() -> None:
        with stop_signals_noted():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGTERM)]


def at_call(number: int, then: Callable[[], None]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Let something happen before one of the calls of a function."""
    calls = iter(range(1, 1000))

    def around(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == number:
                then()
            return function(*args, **kwargs)

        return called

    return around


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [{name: line[name] for name in line.keys() - MEASURED_FIELDS} for line in read_metrics(path)]


KEYS = {"async_save": True, "save_interval": 2}


@pytest.fixture(scope="module")
def undisturbed(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The metrics of a run that nobody stops."""
    return lines_of(tiny.run_tiny(tiny.tiny_config(tmp_path_factory.mktemp("whole"), **KEYS)).metrics_path)


@pytest.mark.parametrize(
    ("what", "call", "step"),
    [("_make_step", 3, 3), ("_make_step", 4, 4), ("_evaluate", 1, 5), ("_save", 1, 3), ("_make_step", 8, None)],
    ids=["in a step", "in a step that is evaluated", "in an evaluation", "in a save", "in the last step"],
)
def test_a_stopped_run_saves_and_goes_on_to_the_same_metrics(
    tiny: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: list[dict[str, Any]],
    what: str,
    call: int,
    step: int | None,
) -> None:
    stop = at_call(call, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with monkeypatch.context() as patched:
        patched.setattr(TrainingRun, what, stop(getattr(TrainingRun, what)))
        stopped = tiny.run_tiny(tiny.tiny_config(tmp_path, **KEYS))
    if step is None:
        # Nothing is left to stop.
        assert (stopped.stopped_by, stopped.iteration) == (None, 8)
    else:
        assert (stopped.stopped_by, stopped.iteration) == (signal.SIGTERM, step)
        assert stopped.checkpoint.name == f"iter_{step:07d}"
        done = tiny.run_tiny(tiny.tiny_config(tmp_path, **KEYS))
        assert (done.stopped_by, done.iteration) == (None, 8)
    assert lines_of(stopped.metrics_path) == undisturbed


class Killed(BaseException):
    """Stands for the end of the process: nothing in the run catches it."""


def test_an_evaluation_that_was_made_up_for_before_a_kill_is_not_told_twice(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: list[dict[str, Any]]
) -> None:
    def kill() -> None:
        raise Killed

    def go(stop: Callable[..., Any]) -> Any:
        with monkeypatch.context() as patched:
            patched.setattr(TrainingRun, "_make_step", stop(TrainingRun._make_step))
            return tiny.run_tiny(tiny.tiny_config(tmp_path, **KEYS))

    stopped = go(at_call(4, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert "validation_loss" not in lines_of(stopped.metrics_path)[-1]
    with pytest.raises(Killed):
        go(at_call(1, kill))
    assert "validation_loss" in lines_of(stopped.metrics_path)[-1]
    tiny.run_tiny(tiny.tiny_config(tmp_path, **KEYS))
    assert lines_of(stopped.metrics_path) == undisturbed
