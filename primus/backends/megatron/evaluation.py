# SPDX-License-Identifier: Apache-2.0
"""The loss of the validation split, divided as that of training.

Shapes: E sequences to evaluate, B sequences of a micro-batch.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import tee
from typing import TypeAlias

import numpy as np
import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.utils import get_model_config

from primus.backends.megatron.data.batches import BatchSource, IntArray, MicroBatch, SequenceDataset
from primus.backends.megatron.data.loading import MicroBatchLoader
from primus.backends.megatron.distributed import sum_over_losses
from primus.backends.megatron.loss import Breakdown, LossReport, break_down, forward_step, sums_of_groups
from primus.backends.megatron.replacement import replaced
from primus.errors import TrainingError
from primus.sft.target_groups import GROUPS_PER_SOURCE

# The chunks of the model on this rank: one, or one for each virtual pipeline stage.
Chunks: TypeAlias = Sequence[DistributedDataParallel]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The losses of the validation split."""

    loss: float
    """Sum of the weighted losses of all targets, divided by the units of all sequences."""
    breakdown: Breakdown
    """The losses of its turns, roles and sources."""
    broken_E: IntArray
    """Ascending indices of the sequences in micro-batches whose loss is no number; one of each may be to blame."""


def evaluated_sequences(num_sequences: int, *, at_most: int) -> IntArray:
    """Choose the sequences that are evaluated, the same ones every time.

    Args:
        num_sequences: Sequences of the validation split.
        at_most: How many to take, evenly spread over the split; 0 takes all of them.

    Returns:
        Ascending indices.

    Examples:
        >>> evaluated_sequences(10, at_most=4).tolist()
        [0, 2, 5, 7]
    """
    num = min(at_most or num_sequences, num_sequences)
    return np.arange(num, dtype=np.int64) * num_sequences // num


def evaluation_micro_batches(
    dataset: SequenceDataset, *, at_most: int, micro_batch_size: int, data_parallel_rank: int, data_parallel_size: int
) -> Sequence[IntArray]:
    """Divide the sequences into one rank's micro-batches; all ranks together have each sequence once.

    Sequences of similar length come together, so that little is padding.

    Args:
        dataset: The validation split.
        at_most: As for `evaluated_sequences`.
        micro_batch_size: Sequences of one forward pass.
        data_parallel_rank: This rank's number.
        data_parallel_size: How many ranks there are.

    Returns:
        Indices of the sequences of each micro-batch. The last one may be smaller than the others, and a rank may have
        one micro-batch less than another, or none.
    """
    chosen_E = evaluated_sequences(len(dataset), at_most=at_most)
    chosen_E = chosen_E[np.argsort(dataset.num_positions_of(chosen_E), kind="stable")]
    starts = range(0, len(chosen_E), micro_batch_size)
    return [chosen_E[start : start + micro_batch_size] for start in starts][data_parallel_rank::data_parallel_size]


def evaluate(
    model: Chunks,
    dataset: SequenceDataset,
    *,
    at_most: int,
    micro_batch_size: int,
    pad_to_multiple_of: int,
    device: torch.device,
) -> Evaluation:
    """Compute the validation loss; all ranks call it together.

    Args:
        model: The chunks of the model on this rank; they are left in training mode.
        dataset: The validation split.
        at_most: How many sequences to take; 0 takes all of them.
        micro_batch_size: Sequences of one forward pass.
        pad_to_multiple_of: As in training.
        device: Where the model is.

    Returns:
        The losses, however the ranks share the sequences.

    Raises:
        TrainingError: If the sequences have no units to divide by.
    """
    batches = evaluation_micro_batches(
        dataset,
        at_most=at_most,
        micro_batch_size=micro_batch_size,
        data_parallel_rank=parallel_state.get_data_parallel_rank(),
        data_parallel_size=parallel_state.get_data_parallel_world_size(),
    )
    with inference(model):
        reports = run_forward_only(model, dataset, batches, pad_to_multiple_of=pad_to_multiple_of, device=device)
    loss_sum, num_units, *groups = sum_over_losses(
        sum_of_losses(reports),
        sum(report.num_units for report in reports),
        *sums_of_groups(reports, num_groups=len(dataset.source_names) * GROUPS_PER_SOURCE),
        device=device,
    )
    if not num_units:
        raise TrainingError(
            "validation: the sequences that are evaluated have targets, but nothing to divide their loss by, as all of"
            " them are later parts of conversations; raise eval_iters, or set it to 0 to take all"
        )
    broken_E = np.zeros(0, dtype=np.int64)
    if not math.isfinite(loss_sum):
        broken_E = _broken_sequences(reports, batches, num_sequences=len(dataset), device=device)
    breakdown = break_down(groups, source_names=dataset.source_names)
    return Evaluation(loss=loss_sum / num_units, breakdown=breakdown, broken_E=broken_E)


def _broken_sequences(
    reports: Sequence[LossReport], batches: Sequence[IntArray], *, num_sequences: int, device: torch.device
) -> IntArray:
    """The sequences of all ranks' micro-batches whose loss is no number."""
    is_broken_N = np.zeros(num_sequences)
    for report, batch_B in zip(reports, batches, strict=False):  # some ranks have no reports
        is_broken_N[batch_B] = not math.isfinite(report.loss_sum.item())
    return np.flatnonzero(sum_over_losses(*is_broken_N, device=device))


def run_forward_only(
    model: Chunks,
    dataset: BatchSource,
    batches: Sequence[IntArray],
    *,
    pad_to_multiple_of: int,
    device: torch.device,
) -> Sequence[LossReport]:
    """Run micro-batches through the model without gradients.

    Args:
        model: The chunks of the model on this rank.
        dataset: The data set.
        batches: Indices of the sequences of each micro-batch, of any sizes, the same on all ranks that share a model;
            other ranks may have none.
        pad_to_multiple_of: As in training.
        device: Where the model is.

    Returns:
        The losses of each micro-batch; nothing on a rank that does not come to know them.
    """
    if not batches:
        return []
    # Virtual stages take turns after as many micro-batches as there are stages; those that are missing are run twice.
    num_missing = -len(batches) % parallel_state.get_pipeline_model_parallel_world_size() if len(model) > 1 else 0
    passed = [*batches, *[batches[-1]] * num_missing]
    loader = MicroBatchLoader(
        dataset, ((batch_B, None) for batch_B in passed), pad_to_multiple_of=pad_to_multiple_of, device=device
    )
    with _any_shapes(model):
        reports: Sequence[LossReport] = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=for_each_chunk(loader, model),
            model=list(model),
            num_microbatches=len(passed),
            seq_length=dataset.max_seq_length,
            micro_batch_size=len(batches[0]),
            forward_only=True,
        )
    return reports[: len(batches)]


def for_each_chunk(batches: Iterator[MicroBatch], model: Chunks) -> list[Iterator[MicroBatch]]:
    """Give every chunk of the model the same micro-batches, each at its own pace.

    Args:
        batches: Gives the micro-batches of one pass of Megatron's schedule, and no others.
        model: The chunks of the model on this rank.

    Returns:
        One iterator for each chunk.
    """
    return list(tee(batches, len(model)))


def sum_of_losses(reports: Sequence[LossReport]) -> float:
    """Add up the losses of micro-batches; 0 if there are none."""
    return torch.stack([report.loss_sum for report in reports]).sum().item() if reports else 0.0


@contextmanager
def _any_shapes(model: Chunks) -> Iterator[None]:
    """Let pipeline stages tell each other the shape of every micro-batch inside the block."""
    config = get_model_config(model[0])
    with replaced(config, "variable_seq_lengths", parallel_state.get_pipeline_model_parallel_world_size() > 1):
        yield


@contextmanager
def inference(model: Chunks) -> Iterator[None]:
    """No dropout and no gradients inside the block, and all parameters gathered."""
    for chunk in model:
        chunk.eval()
    with torch.no_grad(), parameters_gathered(model):
        yield
    for chunk in model:
        chunk.train()


@contextmanager
def parameters_gathered(model: Chunks) -> Iterator[None]:
    """All parameters are up to date inside the block.

    With `overlap_param_gather` an optimizer step leaves them scattered over the ranks until the next training step's
    forward pass gathers them, layer by layer.
    """
    hooked = [chunk for chunk in model if chunk.ddp_config.overlap_param_gather]
    for chunk in hooked:
        chunk.disable_forward_pre_hook()
    yield
    for chunk in hooked:
        chunk.enable_forward_pre_hook()
