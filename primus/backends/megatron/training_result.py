# SPDX-License-Identifier: Apache-2.0
"""What a run left behind."""

import signal
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a run left behind."""

    iteration: int
    """Steps that were made, those before a resume included."""
    lm_loss: float | None
    """Loss of the last step; None if there was nothing left to do."""
    validation_loss: float | None
    """Loss of the last evaluation; None if there was none."""
    checkpoint: Path
    """The newest checkpoint."""
    metrics_path: Path
    """One JSON object per line."""
    loss_curve_path: Path
    """A picture of the losses."""
    report_path: Path
    """A page of what the run did; `run_training` writes it."""
    stopped_by: signal.Signals | None = None
    """The signal that stopped the run before its last step; None if it came to its end."""

    def lines(self) -> list[str]:
        """The result for people."""
        losses = {"loss": self.lm_loss, "validation loss": self.validation_loss}
        return [
            f"steps            {self.iteration:,}",
            *(f"{name:<16} {loss:.4f}" for name, loss in losses.items() if loss is not None),
            f"checkpoint       {self.checkpoint}",
            f"metrics          {self.metrics_path}",
            f"loss curve       {self.loss_curve_path}",
            f"report           {self.report_path}",
        ]

    def __str__(self) -> str:
        return "\n".join(self.lines())
