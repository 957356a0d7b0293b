# SPDX-License-Identifier: Apache-2.0
import io
import logging
import sys

import pytest
from rich.console import Console
from rich.progress import Progress

from primus.backends.megatron.reporting.metrics import EvaluationMetrics, StepMetrics
from primus.backends.megatron.reporting.progress import BarReporter, LineReporter, describe, reporter


def step(iteration: int, *, grad_norm: float | None = 1.5) -> StepMetrics:
    return StepMetrics(
        iteration=iteration,
        lm_loss=0.5,
        loss_by_turn={},
        loss_by_role={},
        loss_by_source={},
        grad_norm=grad_norm,
        learning_rate=5e-6,
        consumed_samples=8 * iteration,
        supervised_tokens=30,
        tokens=100,
        fill=0.875,
        tokens_per_second=12345.6,
        step_time_s=0.25,
        tflops_per_device=12.5,
        mfu=0.4,
        peak_memory_bytes=1 << 30,
        batch_hash="0123456789abcdef",
    )


def evaluation(iteration: int) -> EvaluationMetrics:
    return EvaluationMetrics(
        iteration=iteration,
        validation_loss=0.25,
        validation_loss_by_turn={},
        validation_loss_by_role={},
        validation_loss_by_source={},
        consumed_samples=8 * iteration,
    )


def test_a_step_is_one_line() -> None:
    assert describe(step(7)) == "step 7 | loss 0.5000 | grad norm 1.500 | lr 5e-06 | 12,346 tokens/s | fill 87.5 %"
    assert "grad norm overflow" in describe(step(7, grad_norm=None))


def test_a_log_has_the_first_step_the_last_and_every_evaluation(caplog: pytest.LogCaptureFixture) -> None:
    lines = LineReporter(train_iters=5)
    with caplog.at_level(logging.INFO, logger="primus"):
        for metrics in (step(1), step(2), evaluation(2), step(3), step(4), step(5), evaluation(5)):
            lines.show(metrics)
    shown = [message.split(" | ")[:2] for message in caplog.messages]
    expected = [(1, "loss 0.5000"), (2, "validation loss 0.2500"), (5, "loss 0.5000"), (5, "validation loss 0.2500")]
    assert shown == [[f"step {iteration}", what] for iteration, what in expected]


def test_a_log_gets_a_step_when_ten_seconds_have_passed(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter([0.0, 9.9, 10.1, 15.0, 21.0])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    lines = LineReporter(train_iters=100)
    with caplog.at_level(logging.INFO, logger="primus"):
        for iteration in range(1, 6):
            lines.show(step(iteration))
    assert [message.split(" | ")[0] for message in caplog.messages] == ["step 1", "step 3", "step 5"]


def test_a_terminal_gets_a_bar_that_continues_where_the_run_does() -> None:
    screen = io.StringIO()
    with Progress(console=Console(file=screen, force_terminal=True, width=200)) as progress:
        bar = BarReporter(progress, start=3, train_iters=10)
        (task,) = progress.tasks
        assert (task.completed, task.total) == (3, 10)
        bar.show(step(4))
        bar.show(evaluation(4))
        assert task.completed == 4
        assert "loss 0.5000" in task.fields["status"]
        assert task.fields["validation"] == "validation 0.2500"
    assert "step 4 | validation loss 0.2500" in screen.getvalue()


@pytest.mark.parametrize(("is_terminal", "kind"), [(True, BarReporter), (False, LineReporter)])
def test_what_is_shown_depends_on_where_it_goes(monkeypatch: pytest.MonkeyPatch, is_terminal: bool, kind: type) -> None:
    screen = io.StringIO()
    screen.isatty = lambda: is_terminal  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", screen)
    with reporter(start=0, train_iters=2) as shown:
        assert isinstance(shown, kind)
