# SPDX-License-Identifier: Apache-2.0
"""From the lines of the metrics file to curves, and to the figures of the end of a run.

P: points of a curve.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from primus.backends.megatron.reporting.loss_curve import running_mean
from primus.sft.target_groups import Dimension

Line = Mapping[str, Any]
FloatArray = npt.NDArray[np.float64]

# A curve of many noisy points is drawn as a mean over this part of them.
_SMOOTHED_PART = 40
# What the end of a run is, in its lines: the last tenth.
_END_PART = 10


@dataclass(frozen=True, slots=True)
class Curve:
    """Points over the steps of a run.

    Attributes:
        name: What it is a curve of.
        steps_P: The steps, ascending.
        values_P: The values.
    """

    name: str
    steps_P: FloatArray
    values_P: FloatArray

    def __len__(self) -> int:
        return len(self.steps_P)

    @property
    def num_averaged(self) -> int:
        """Points that each point of the smoothed curve is the mean of; 1 where there are too few to smooth."""
        return max(1, len(self) // _SMOOTHED_PART)

    @property
    def smoothed(self) -> "Curve":
        """Each point as the mean of it and those before it."""
        return Curve(self.name, self.steps_P, running_mean(self.values_P, self.num_averaged))


@dataclass(frozen=True, slots=True)
class GroupFigures:
    """The loss of a group at the end of a run.

    Attributes:
        name: The group.
        train: Mean over the targets of the last tenth of the logged steps; None if they have none.
        num_train: How many targets these are.
        validation: The last evaluation's; None if it has no such targets.
        num_validation: How many targets these are.
    """

    name: str
    train: float | None
    num_train: int
    validation: float | None
    num_validation: int


def curve_of(lines: Sequence[Line], field: str) -> Curve:
    """The curve of a field; lines without it, or without a value for it, have no point.

    Args:
        lines: The lines of the metrics file.
        field: The field.

    Returns:
        The curve.
    """
    points = [(line["iteration"], line[field]) for line in lines if line.get(field) is not None]
    return _curve(field, points)


def group_curves(lines: Sequence[Line], dimension: Dimension, *, prefix: str) -> list[Curve]:
    """The losses of groups over the steps.

    Args:
        lines: The lines of the metrics file.
        dimension: What they are the groups of.
        prefix: `validation_`, or nothing for training.

    Returns:
        A curve for each group, in their order.
    """
    field = f"{prefix}loss_by_{dimension}"
    told = [line for line in lines if field in line]
    names = _names(told, field)
    return [
        _curve(name, [(line["iteration"], line[field][name]["loss"]) for line in told if name in line[field]])
        for name in names
    ]


def figures_at_the_end(lines: Sequence[Line], dimension: Dimension) -> list[GroupFigures]:
    """The losses of groups at the end of a run.

    Args:
        lines: The lines of the metrics file.
        dimension: What they are the groups of.

    Returns:
        The groups of training and of the last evaluation, in their order.
    """
    field = f"loss_by_{dimension}"
    steps = [line for line in lines if field in line]
    last_steps = steps[-max(1, len(steps) // _END_PART) :]
    evaluations = [line for line in lines if f"validation_{field}" in line][-1:]
    train = {name: _mean(last_steps, field, name) for name in _names(last_steps, field)}
    validation = {
        name: _mean(evaluations, f"validation_{field}", name) for name in _names(evaluations, f"validation_{field}")
    }
    return [
        GroupFigures(name, *train.get(name, (None, 0)), *validation.get(name, (None, 0)))
        for name in sorted({**train, **validation}, key=_in_order)
    ]


@dataclass(frozen=True, slots=True)
class Work:
    """What a run did in all, as far as its lines tell.

    Attributes:
        num_steps: Steps that were made.
        num_sequences: Training sequences, repetitions counted.
        num_tokens: Tokens, padding not counted.
        seconds: Time of the steps, evaluations and checkpoints not counted.
    """

    num_steps: int
    num_sequences: int
    num_tokens: float
    seconds: float


def work_of(lines: Sequence[Line]) -> Work | None:
    """Add up what the lines of training steps tell; each speaks for the steps since the line before.

    Args:
        lines: The lines of the metrics file.

    Returns:
        The sums, or None if no step was logged.
    """
    steps = [line for line in lines if "lm_loss" in line]
    if not steps:
        return None
    num_steps = np.diff([0, *(line["iteration"] for line in steps)])
    seconds = num_steps * [line["step_time_s"] for line in steps]
    return Work(
        num_steps=steps[-1]["iteration"],
        num_sequences=steps[-1]["consumed_samples"],
        num_tokens=float((seconds * [line["tokens_per_second"] for line in steps]).sum()),
        seconds=float(seconds.sum()),
    )


def _curve(name: str, points: Sequence[tuple[float, float]]) -> Curve:
    array = np.array(points, dtype=np.float64).reshape(-1, 2)
    return Curve(name, array[:, 0], array[:, 1])


def _names(lines: Sequence[Line], field: str) -> list[str]:
    """The groups of all lines: turns by their number, others as they come."""
    return sorted(dict.fromkeys(name for line in lines for name in line[field]), key=_in_order)


def _in_order(name: str) -> int:
    number = name.rstrip("+")
    return int(number) if number.isdecimal() else 0


def _mean(lines: Sequence[Line], field: str, name: str) -> tuple[float | None, int]:
    groups = [line[field][name] for line in lines if name in line[field]]
    num = sum(group["targets"] for group in groups)
    return (sum(group["loss"] * group["targets"] for group in groups) / num if num else None), num
