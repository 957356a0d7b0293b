# SPDX-License-Identifier: Apache-2.0
"""The loss curve of a run as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# Paul Tol's palette, which colour-blind readers can tell apart.
_BLUE, _RED = "#4477aa", "#ee6677"


def draw_loss_curve(metrics: Sequence[Mapping[str, Any]], *, path: Path, title: str) -> None:
    """Draw training and validation loss over the steps.

    Args:
        metrics: The lines of the metrics file.
        path: The PNG to write.
        title: Name of the run.
    """
    # One rank draws, once; the others need not wait for the import.
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

    train, validation = _curve(metrics, "lm_loss"), _curve(metrics, "validation_loss")
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if len(train):
        steps, losses = train.T
        smoothing = max(1, len(losses) // 50)
        label = "training" if smoothing == 1 else f"training (mean of {smoothing} lines)"
        axes.plot(steps, losses, color=_BLUE, alpha=0.25, linewidth=1)
        axes.plot(steps, running_mean(losses, smoothing), color=_BLUE, linewidth=1.8, label=label)
    if len(validation):
        label = f"validation ({validation[-1, 1]:.4f} at the end)"
        axes.plot(*validation.T, color=_RED, marker="o", markersize=4, linewidth=1.8, label=label)
    axes.set(title=title, xlabel="step", ylabel="loss per supervised token (nats)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if len(train) or len(validation):
        axes.legend(frameon=False)
    partial = path.with_name(f".{path.name}.partial")
    figure.savefig(partial, format="png")
    partial.replace(path)


def _curve(metrics: Sequence[Mapping[str, Any]], name: str) -> npt.NDArray[np.float64]:
    return np.array([(line["iteration"], line[name]) for line in metrics if name in line], dtype=np.float64)


def running_mean(values: npt.NDArray[np.float64], num: int) -> npt.NDArray[np.float64]:
    """Average each value with the `num - 1` before it, or with as many as there are.

    Args:
        values: The values, in order.
        num: How many are averaged.

    Returns:
        The means, as many as there are values.

    Examples:
        >>> running_mean(np.array([4.0, 2.0, 6.0]), 2).tolist()
        [4.0, 3.0, 4.0]
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - num, 0)
    means: npt.NDArray[np.float64] = (sums[ends] - sums[starts]) / (ends - starts)
    return means
