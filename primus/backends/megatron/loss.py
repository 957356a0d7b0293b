# SPDX-License-Identifier: Apache-2.0
"""The masked per-token loss, in the form that Megatron's schedules want.

The loss of a step is the sum of the weighted losses of all targets of the global batch, divided by how many targets
there are. A rank only sums: Megatron divides the gradients by the number of targets of all ranks and micro-batches
(`calculate_per_token_loss`), so it does not matter how the targets fall on them. Weights scale a target's loss and not
the divisor.

Shapes: N targets of a micro-batch.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from primus.backends.megatron.batches import MicroBatch
from primus.backends.megatron.cpu import untranslated


@dataclass(frozen=True, kw_only=True)
class LossReport:
    """What one micro-batch contributes to the loss of the step."""

    loss_sum: Tensor
    """Sum of the weighted losses, a float64 scalar on the device."""
    num_targets: int
    """How many targets there are."""


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
            None,
            labels_N=batch.labels_N,
            target_positions_N=batch.target_positions_N,
        )
    return losses_N, partial(sum_losses, batch.weights_N)


def sum_losses(weights_N: Tensor, losses_N: Tensor) -> tuple[Tensor, Tensor, LossReport]:
    """Sum the weighted losses of a micro-batch.

    Args:
        weights_N: How much each target counts.
        losses_N: The loss of each target.

    Returns:
        The sum to differentiate, the number of targets as an int tensor, and the report.

    Examples:
        >>> total, num_targets, _ = sum_losses(torch.tensor([1.0, 0.5]), torch.tensor([2.0, 4.0]))
        >>> total.item(), num_targets.item()
        (4.0, 2)
    """
    weighted_N = losses_N * weights_N
    # Rounding would otherwise depend on how the targets are divided into micro-batches.
    loss_sum = weighted_N.detach().double().sum()
    num_targets = torch.full((), weights_N.numel(), dtype=torch.int, device=weights_N.device)
    return weighted_N.sum(), num_targets, LossReport(loss_sum=loss_sum, num_targets=weights_N.numel())
