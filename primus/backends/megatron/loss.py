# SPDX-License-Identifier: Apache-2.0
"""The masked per-token loss, in the form that Megatron's schedules want.

The loss of a step is the sum of the weighted losses of all targets of the global batch, divided by the units of its
sequences: as many as there are targets, if every token counts the same. A rank only sums: Megatron divides the
gradients by the units of all ranks and micro-batches (`calculate_per_token_loss`), so it does not matter how the
targets fall on them. Weights scale a target's loss and not the divisor.

Shapes: N targets of a micro-batch.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from primus.backends.megatron.cpu import untranslated
from primus.backends.megatron.data.batches import MicroBatch


@dataclass(frozen=True, kw_only=True)
class LossReport:
    """What one micro-batch contributes to the loss of the step."""

    loss_sum: Tensor
    """Sum of the weighted losses, a float64 scalar on the device."""
    num_targets: int
    """How many targets there are."""
    num_units: int
    """What it adds to the divisor of the loss."""
    num_places: int
    """Positions that were computed, padding included."""
    content_hash: int
    """Its part in the hash of the global batch."""


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
    report = LossReport(
        # Rounding would otherwise depend on how the targets are divided into micro-batches.
        loss_sum=weighted_N.detach().double().sum(),
        num_targets=batch.weights_N.numel(),
        num_units=batch.num_units,
        num_places=batch.input_ids_BS.numel(),
        content_hash=batch.content_hash,
    )
    num_units = torch.full((), batch.num_units, dtype=torch.int, device=losses_N.device)
    return weighted_N.sum(), num_units, report
