# SPDX-License-Identifier: Apache-2.0
"""What is written down of a run: `logs/metrics.jsonl` and TensorBoard events.

A line of the metrics file is one JSON object; numbers have all their digits. Lines with `lm_loss` are training steps,
lines with `validation_loss` are evaluations.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Protocol


class Scalars(Protocol):
    """Where curves are drawn; TensorBoard's `SummaryWriter` is one."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> object:
        """Add one point to a curve."""


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """One training step, as a line of the metrics file."""

    iteration: int
    """Steps that were made, this one included."""
    lm_loss: float
    """Sum of the weighted losses of the global batch's targets, divided by its units."""
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
    batch_hash: str
    """Hash of what this step trained, in its order; the same however ranks and micro-batches divide it."""


@dataclass(frozen=True, kw_only=True)
class EvaluationMetrics:
    """One evaluation, as a line of the metrics file."""

    iteration: int
    """Steps that were made."""
    validation_loss: float
    """Sum of the weighted losses of the validation split's targets, divided by its units."""
    consumed_samples: int
    """Sequences that were trained until then."""


Metrics = StepMetrics | EvaluationMetrics


class MetricsWriter:
    """Writes lines and points as they come; a line is in the file when `write` returns."""

    def __init__(self, file: IO[str], scalars: Scalars | None) -> None:
        self._file = file
        self._scalars = scalars

    def write(self, metrics: Metrics) -> None:
        """Append one line, and its numbers to the curves."""
        line = asdict(metrics)
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        if self._scalars is not None:
            for name, value in line.items():
                if name != "iteration" and isinstance(value, int | float):
                    self._scalars.add_scalar(name, value, metrics.iteration)


@contextmanager
def metrics_writer(path: Path, *, start: int, tensorboard_dir: Path | None) -> Iterator[MetricsWriter]:
    """Open the metrics file of a run.

    Args:
        path: The file. A run that continues at step `start` keeps the lines up to there, so that the file is that of a
            run that was never interrupted; a run that starts anew begins an empty file.
        start: Steps that were made before.
        tensorboard_dir: Folder for TensorBoard events; None writes none.

    Yields:
        The writer.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = [line for line in read_metrics(path) if line["iteration"] <= start] if start else []
    with ExitStack() as stack:
        file = stack.enter_context(path.open("w", encoding="utf-8"))
        file.writelines(json.dumps(line) + "\n" for line in kept)
        scalars = None
        if tensorboard_dir is not None:
            # One rank writes; the others need not wait for the import.
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415

            scalars = SummaryWriter(str(tensorboard_dir), purge_step=start + 1)
            stack.callback(scalars.close)
        yield MetricsWriter(file, scalars)


def read_metrics(path: Path) -> Sequence[Mapping[str, Any]]:
    """The lines of a metrics file; a last line that was cut off while it was written is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
