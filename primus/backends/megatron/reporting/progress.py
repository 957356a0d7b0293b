# SPDX-License-Identifier: Apache-2.0
"""What a person sees while a run goes on: a progress bar on a terminal, now and then a line in a log."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from primus.backends.megatron.reporting.metrics import EvaluationMetrics, Metrics, StepMetrics

logger = logging.getLogger("primus")

SECONDS_BETWEEN_LINES = 10.0


class Reporter(Protocol):
    """Shows what has happened."""

    def show(self, metrics: Metrics) -> None:
        """Show a training step or an evaluation."""


def describe(metrics: Metrics) -> str:
    """Put a training step or an evaluation into one line.

    Args:
        metrics: The step or the evaluation.

    Returns:
        The line.

    Examples:
        >>> groups = {f"validation_loss_by_{name}": {} for name in ("turn", "role", "source")}
        >>> describe(EvaluationMetrics(iteration=200, validation_loss=0.51234, consumed_samples=2400, **groups))
        'step 200 | validation loss 0.5123'
    """
    if isinstance(metrics, EvaluationMetrics):
        return f"step {metrics.iteration} | validation loss {metrics.validation_loss:.4f}"
    grad_norm = "overflow" if metrics.grad_norm is None else f"{metrics.grad_norm:.3f}"
    return (
        f"step {metrics.iteration} | loss {metrics.lm_loss:.4f} | grad norm {grad_norm} | "
        f"lr {metrics.learning_rate:.3g} | {metrics.tokens_per_second:,.0f} tokens/s | fill {100 * metrics.fill:.1f} %"
    )


class LineReporter:
    """Logs the first step and the last, every evaluation, and in between a step every ten seconds."""

    def __init__(self, *, train_iters: int) -> None:
        self._train_iters = train_iters
        self._last_line_s = -SECONDS_BETWEEN_LINES

    def show(self, metrics: Metrics) -> None:
        """Log a line if it is time for one."""
        now = time.monotonic()
        is_step = isinstance(metrics, StepMetrics)
        is_due = now - self._last_line_s >= SECONDS_BETWEEN_LINES or metrics.iteration == self._train_iters
        if is_step and not is_due:
            return
        if is_step:
            self._last_line_s = now
        logger.info("%s", describe(metrics))


class BarReporter:
    """Moves a progress bar; evaluations stay above it."""

    def __init__(self, progress: Progress, *, start: int, train_iters: int) -> None:
        self._progress = progress
        self._task = progress.add_task("training", total=train_iters, completed=start, status="", validation="")

    def show(self, metrics: Metrics) -> None:
        """Update the bar."""
        if isinstance(metrics, EvaluationMetrics):
            self._progress.console.print(describe(metrics), highlight=False)
            self._progress.update(self._task, validation=f"validation {metrics.validation_loss:.4f}")
            return
        speed = f"{metrics.tokens_per_second:,.0f} tokens/s"
        status = f"loss {metrics.lm_loss:.4f}  lr {metrics.learning_rate:.2e}  {speed}"
        self._progress.update(self._task, completed=metrics.iteration, status=status)


@contextmanager
def reporter(*, start: int, train_iters: int) -> Iterator[Reporter]:
    """Choose how progress is shown: as a bar if standard error is a terminal, else as lines in the log.

    Args:
        start: Steps that were made before.
        train_iters: Steps of the run.

    Yields:
        The reporter.
    """
    if not sys.stderr.isatty():
        yield LineReporter(train_iters=train_iters)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
        TextColumn("{task.fields[validation]}"),
    )
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=4) as progress:
        yield BarReporter(progress, start=start, train_iters=train_iters)
