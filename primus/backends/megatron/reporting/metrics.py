# SPDX-License-Identifier: Apache-2.0
"""What is written down of a run: `logs/metrics.jsonl`, and curves for whoever draws them.

A line of the metrics file is one JSON object; numbers have all their digits. Lines with `lm_loss` are training steps,
lines with `validation_loss` are evaluations.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from primus.backends.megatron.loss import GroupLoss
from primus.backends.megatron.reporting.continuation import SET_ASIDE_FILE, set_aside_later_lines

logger = logging.getLogger("primus")


class Curves(Protocol):
    """Where curves are drawn, such as TensorBoard."""

    def add(self, points: Mapping[str, float], *, iteration: int) -> None:
        """Add a point to each of some curves."""


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """One training step, as a line of the metrics file."""

    iteration: int
    """Steps that were made, this one included."""
    lm_loss: float
    """Sum of the weighted losses of the global batch's targets, divided by its units."""
    loss_by_turn: Mapping[str, GroupLoss]
    """Mean loss of the targets in the first assistant turn, the second, and so on, without weights."""
    loss_by_role: Mapping[str, GroupLoss]
    """The same of what the assistant says, and of the tokens that end its turns."""
    loss_by_source: Mapping[str, GroupLoss]
    """The same of each source."""
    grad_norm: float | None
    """Norm of the gradient before it was clipped; None if it overflowed and the step changed no weight."""
    learning_rate: float
    """Learning rate of this step."""
    consumed_samples: int
    """Sequences that were trained, this step included, repetitions counted."""
    supervised_tokens: int
    """Targets of this step."""
    tokens: int
    """Tokens of this step, padding not counted."""
    fill: float
    """Share of this step's positions that are not padding."""
    tokens_per_second: float
    """Tokens per second since the line before, padding, evaluations and checkpoints not counted."""
    step_time_s: float
    """Mean time of a step since the line before, evaluations and checkpoints not counted."""
    tflops_per_device: float
    """Useful operations per second and device in that time, in 10^12: no padding, and nothing computed again."""
    mfu: float | None
    """That as a share of a device's peak rate; None if that is not known, as on a CPU without `sft_peak_tflops`."""
    peak_memory_bytes: int
    """Most memory of a rank since it began: of its tensors on a GPU, of its process on a CPU."""
    batch_hash: str
    """Hash of what this step trained, in its order; the same however ranks and micro-batches divide it."""


@dataclass(frozen=True, kw_only=True)
class EvaluationMetrics:
    """One evaluation, as a line of the metrics file."""

    iteration: int
    """Steps that were made."""
    validation_loss: float
    """Sum of the weighted losses of the validation split's targets, divided by its units."""
    validation_loss_by_turn: Mapping[str, GroupLoss]
    """Mean loss of the split's targets in the first assistant turn, the second, and so on, without weights."""
    validation_loss_by_role: Mapping[str, GroupLoss]
    """The same of what the assistant says, and of the tokens that end its turns."""
    validation_loss_by_source: Mapping[str, GroupLoss]
    """The same of each source."""
    consumed_samples: int
    """Sequences that were trained until then."""


Metrics = StepMetrics | EvaluationMetrics


def points_of(metrics: Metrics) -> dict[str, float]:
    """The points that a step or an evaluation adds to curves.

    Args:
        metrics: The step or the evaluation.

    Returns:
        Each number under its name in the metrics file; the loss of a group under the name of its field, a `/`, and the
        name of the group.

    Examples:
        >>> nobody = {}
        >>> points_of(EvaluationMetrics(
        ...     iteration=4, validation_loss=0.5, consumed_samples=96, validation_loss_by_role=nobody,
        ...     validation_loss_by_turn={"1": GroupLoss(loss=0.75, targets=30)}, validation_loss_by_source=nobody))
        {'validation_loss': 0.5, 'validation_loss_by_turn/1': 0.75, 'consumed_samples': 96}
    """
    points: dict[str, float] = {}
    for name, value in vars(metrics).items():
        if isinstance(value, Mapping):
            points.update({f"{name}/{group}": loss.loss for group, loss in value.items()})
        elif isinstance(value, int | float) and name != "iteration":
            points[name] = value
    return points


class MetricsWriter:
    """Writes lines and points as they come; a line is in the file when `write` returns."""

    def __init__(self, file: IO[str], curves: Sequence[Curves]) -> None:
        self._file = file
        self._curves = curves

    def write(self, metrics: Metrics) -> None:
        """Append one line, and its numbers to the curves."""
        self._file.write(json.dumps(asdict(metrics), allow_nan=False) + "\n")
        self._file.flush()
        if self._curves:
            points = points_of(metrics)
            for curves in self._curves:
                curves.add(points, iteration=metrics.iteration)


@contextmanager
def metrics_writer(
    path: Path, *, start: int, curves: Sequence[Curves] = (), is_evaluated_again: bool = False
) -> Iterator[MetricsWriter]:
    """Open the metrics file of a run.

    Args:
        path: The file. A run that continues at step `start` keeps the lines up to there, so that the file is that of a
            run that was never interrupted; the others are set aside.
        start: Steps that were made before.
        curves: Where the numbers are drawn besides.
        is_evaluated_again: Whether the evaluation after that step is made now.

    Yields:
        The writer.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    num_lines = set_aside_later_lines(path, start=start, is_evaluated_again=is_evaluated_again)
    if num_lines:
        logger.warning(
            "%s: has %d lines of steps after %d, which are made again; they are moved to %s beside it",
            path,
            num_lines,
            start,
            SET_ASIDE_FILE,
        )
    with path.open("a", encoding="utf-8") as file:
        yield MetricsWriter(file, curves)


def read_metrics(path: Path) -> Sequence[Mapping[str, Any]]:
    """The lines of a metrics file; a last line that was cut off while it was written is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
