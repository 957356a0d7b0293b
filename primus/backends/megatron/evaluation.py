# SPDX-License-Identifier: Apache-2.0
"""The loss of the validation split, divided as that of training.

Shapes: E sequences to evaluate, B sequences of a micro-batch.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.pipeline_parallel import get_forward_backward_func

from primus.backends.megatron.data.batches import BatchSource, IntArray, SequenceDataset
from primus.backends.megatron.data.loading import MicroBatchLoader
from primus.backends.megatron.distributed import sum_over_data_parallel
from primus.backends.megatron.loss import LossReport, forward_step


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
    model: DistributedDataParallel,
    dataset: SequenceDataset,
    *,
    at_most: int,
    micro_batch_size: int,
    pad_to_multiple_of: int,
    device: torch.device,
) -> float:
    """Compute the validation loss; all ranks call it together.

    Args:
        model: The model; it is left in training mode.
        dataset: The validation split.
        at_most: How many sequences to take; 0 takes all of them.
        micro_batch_size: Sequences of one forward pass.
        pad_to_multiple_of: As in training.
        device: Where the model is.

    Returns:
        Sum of the weighted losses of all targets, divided by the units of all sequences, however the ranks share them.
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
    loss_sum, num_units = sum_over_data_parallel(
        sum(report.loss_sum.item() for report in reports),
        sum(report.num_units for report in reports),
        device=device,
    )
    return loss_sum / num_units


def run_forward_only(
    model: DistributedDataParallel,
    dataset: BatchSource,
    batches: Sequence[IntArray],
    *,
    pad_to_multiple_of: int,
    device: torch.device,
) -> Sequence[LossReport]:
    """Run micro-batches through the model without gradients; a rank may have none."""
    if not batches:
        return []
    reports: Sequence[LossReport] = get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=MicroBatchLoader(
            dataset, ((batch_B, None) for batch_B in batches), pad_to_multiple_of=pad_to_multiple_of, device=device
        ),
        model=model,
        num_microbatches=len(batches),
        seq_length=dataset.max_seq_length,
        micro_batch_size=len(batches[0]),
        forward_only=True,
    )
    return reports


@contextmanager
def inference(model: DistributedDataParallel) -> Iterator[None]:
    """No dropout and no gradients inside the block, and all parameters gathered."""
    model.eval()
    with torch.no_grad(), parameters_gathered(model):
        yield
    model.train()


@contextmanager
def parameters_gathered(model: DistributedDataParallel) -> Iterator[None]:
    """All parameters are up to date inside the block.

    With `overlap_param_gather` an optimizer step leaves them scattered over the ranks until the next training step's
    forward pass gathers them, layer by layer.
    """
    if not model.ddp_config.overlap_param_gather:
        yield
        return
    model.disable_forward_pre_hook()
    yield
    model.enable_forward_pre_hook()
