# SPDX-License-Identifier: Apache-2.0
"""The masked per-token loss, in the form that Megatron's schedules want.

The loss of a step is the sum of the weighted losses of all targets of the global batch, divided by the units of its
sequences: as many as there are targets, if every token counts the same. A rank only sums: Megatron divides the
gradients by the units of all ranks and micro-batches (`calculate_per_token_loss`), so it does not matter how the
targets fall on them. Weights scale a target's loss and not the divisor.

Beside it, the losses of the targets are summed for each of their groups (`primus.sft.target_groups`), without weights:
what a group's loss tells is the mean over its targets, whatever they count for.

Shapes: N targets of a micro-batch, G groups of the data set.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from primus.backends.megatron.cpu import untranslated
from primus.backends.megatron.data.batches import MicroBatch
from primus.sft.target_groups import ROLE_NAMES, TURN_NAMES, Dimension, by_dimension


@dataclass(frozen=True, kw_only=True)
class LossReport:
    """What one micro-batch contributes to the loss of the step."""

    loss_sum: Tensor
    """Sum of the weighted losses, a float64 scalar on the device."""
    num_targets: int
    """How many targets there are."""
    num_units: int
    """What it adds to the divisor of the loss."""
    group_sums_G: Tensor
    """Sum of the losses of each group's targets, without weights, in float64 on the device."""
    group_counts_G: Tensor
    """How many targets each group has, in int64 on the device."""
    num_places: int
    """Positions that were computed, padding included."""


LossFunction = Callable[[Tensor], tuple[Tensor, Tensor, LossReport]]


def forward_step(batches: Iterator[MicroBatch], model: torch.nn.Module) -> tuple[Tensor, LossFunction]:
    """Run the next micro-batch through the model.

    Args:
        batches: Gives the micro-batches, in order.
        model: A `TargetsOnlyGPTModel`, wrapped or not.

    Returns:
        The loss of each target, shape [N], and the function that sums them.
    """
    batch = next(batches)
    with untranslated() if batch.labels_N.device.type == "cpu" else nullcontext():
        losses_N = model(
            batch.input_ids_BS,
            batch.position_ids_BS,
            batch.segments_C2,
            labels_N=batch.labels_N,
            target_positions_N=batch.target_positions_N,
        )
    return losses_N, partial(sum_losses, batch)


def sum_losses(batch: MicroBatch, losses_N: Tensor) -> tuple[Tensor, Tensor, LossReport]:
    """Sum the weighted losses of a micro-batch.

    Args:
        batch: The micro-batch.
        losses_N: The loss of each of its targets.

    Returns:
        The sum to differentiate, the units as an int tensor, and the report.
    """
    weighted_N = losses_N * batch.weights_N
    group_sums_G = torch.zeros(batch.num_groups, dtype=torch.float64, device=losses_N.device)
    group_counts_G = torch.zeros(batch.num_groups, dtype=torch.int64, device=losses_N.device)
    report = LossReport(
        # Rounding would otherwise depend on how the targets are divided into micro-batches.
        loss_sum=weighted_N.detach().double().sum(),
        num_targets=batch.weights_N.numel(),
        num_units=batch.num_units,
        group_sums_G=group_sums_G.index_add_(0, batch.groups_N, losses_N.detach().double()),
        group_counts_G=group_counts_G.index_add_(0, batch.groups_N, torch.ones_like(batch.groups_N, dtype=torch.int64)),
        num_places=batch.input_ids_BS.numel(),
    )
    num_units = torch.full((), batch.num_units, dtype=torch.int, device=losses_N.device)
    return weighted_N.sum(), num_units, report


@dataclass(frozen=True, kw_only=True)
class GroupLoss:
    """The loss of some targets."""

    loss: float
    """Mean of their losses, without weights."""
    targets: int
    """How many they are."""


Breakdown = Mapping[Dimension, Mapping[str, GroupLoss]]
"""The losses of the turns, roles and sources that have targets, by their names."""


def sums_of_groups(reports: Sequence[LossReport], *, num_groups: int) -> list[float]:
    """What the groups of micro-batches add up to, as numbers that may be added up over ranks.

    Args:
        reports: What the micro-batches contributed; a rank may have none.
        num_groups: Groups of the data set.

    Returns:
        The sum of the losses of each group, and behind them the number of its targets; counts are whole numbers and
        exact in float64.
    """
    if not reports:
        return [0.0] * (2 * num_groups)
    sums_G = torch.stack([report.group_sums_G for report in reports]).sum(0)
    counts_G = torch.stack([report.group_counts_G for report in reports]).sum(0)
    return torch.cat([sums_G, counts_G.double()]).tolist()


def break_down(sums: Sequence[float], *, source_names: Sequence[str]) -> Breakdown:
    """The loss of each turn, role and source.

    Args:
        sums: What `sums_of_groups` gives, added up over ranks.
        source_names: The name of each source.

    Returns:
        For each dimension the groups that have targets, in order. The targets of a dimension's groups are those of the
        whole, and so are the sums of their losses.

    Examples:
        Two answers with their ends in the first turn, and one in the second:

        >>> sums_G, counts_G = [0.0] * 18, [0] * 18
        >>> sums_G[:3], counts_G[:3] = [12.0, 0.5, 5.0], [8, 2, 5]
        >>> break_down([*sums_G, *counts_G], source_names=["chat"])["turn"]
        {'1': GroupLoss(loss=1.25, targets=10), '2': GroupLoss(loss=1.0, targets=5)}
    """
    sums_G, counts_G = np.array(sums).reshape(2, -1)
    names: dict[Dimension, Sequence[str]] = {"turn": TURN_NAMES, "role": ROLE_NAMES, "source": source_names}
    return {
        dimension: {
            name: GroupLoss(loss=total / count, targets=int(count))
            for name, total, count in zip(
                names_D,
                by_dimension(sums_G, dimension).tolist(),
                by_dimension(counts_G, dimension).tolist(),
                strict=True,
            )
            if count
        }
        for dimension, names_D in names.items()
    }
