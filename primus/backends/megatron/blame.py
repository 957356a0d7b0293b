# SPDX-License-Identifier: Apache-2.0
"""Which conversations of a global batch, or of the validation split, have a loss that is no number.

The batch is run again, one conversation at a time, so that what is wrong with one of them can't spread to another.

Shapes: G sequences of the global batch, C conversations in them, B sequences of a micro-batch.
"""

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any, cast

import numpy as np
import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel

from primus.backends.megatron.data.batches import BatchSource, IntArray
from primus.backends.megatron.distributed import has_losses, sum_over_losses
from primus.backends.megatron.evaluation import inference, run_forward_only
from primus.sft.masking import PackedTargets

# Conversations that a message names; the rest is counted.
_MAX_NAMED = 8
_MAX_LOOKED_AT = 64
_NONE: IntArray = np.zeros(0, dtype=np.int64)


def describe_broken_loss(
    model: Sequence[DistributedDataParallel],
    dataset: BatchSource,
    batch_G: IntArray,
    *,
    own_places: Sequence[int],
    pad_to_multiple_of: int,
    device: torch.device,
    whose: str = "the global batch's",
) -> str:
    """Say which conversations of a batch are to blame for its loss; all ranks call it together.

    Args:
        model: The chunks of the model on this rank.
        dataset: The data set.
        batch_G: Indices of the batch's sequences.
        own_places: Places in the batch of the sequences that this rank computes.
        pad_to_multiple_of: As in training.
        device: Where the model is.
        whose: Whose conversations they are, for the message.

    Returns:
        What follows the loss in a message.
    """
    origins = [dataset.origins(index) for index in batch_G.tolist()]
    bounds = np.cumsum([0, *map(len, origins)])
    own_C = np.concatenate([_NONE, *(np.arange(bounds[place], bounds[place + 1]) for place in own_places)])
    alone = cast("BatchSource", _Conversations(dataset, batch_G, bounds=bounds))
    with inference(model):
        reports = run_forward_only(
            model, alone, list(own_C[:, None]), pad_to_multiple_of=pad_to_multiple_of, device=device
        )
    broken_C = np.zeros(bounds[-1])
    if has_losses():
        broken_C[own_C] = [not math.isfinite(report.loss_sum.item()) for report in reports]
    is_broken_C = np.array(sum_over_losses(*broken_C, device=device)) > 0
    all_origins = list(chain.from_iterable(origins))
    what = "conversations" if dataset.is_packed else "sequences"
    if is_broken_C.all() or not is_broken_C.any():
        return (
            f", with every one of {whose} {what}; lower lr, or look at the step before; {what}: "
            f"{name_some(all_origins)}"
        )
    to_blame = [all_origins[number] for number in np.flatnonzero(is_broken_C)]
    return f" because of {len(to_blame)} of {whose} {len(all_origins)} {what}; look at {name_some(to_blame)}"


def describe_broken_validation(
    model: Sequence[DistributedDataParallel],
    dataset: BatchSource,
    broken_E: IntArray,
    *,
    pad_to_multiple_of: int,
    device: torch.device,
) -> str:
    """Say which conversations are to blame for a validation loss; all ranks call it together.

    Args:
        model: The chunks of the model on this rank.
        dataset: The validation split.
        broken_E: What `evaluate` found; the first 64 are looked at one by one.
        pad_to_multiple_of: As in training.
        device: Where the model is.

    Returns:
        What follows the loss in a message.
    """
    looked_at_E = broken_E[:_MAX_LOOKED_AT]
    rank, num_ranks = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    return describe_broken_loss(
        model,
        dataset,
        looked_at_E,
        own_places=range(len(looked_at_E))[rank::num_ranks],
        pad_to_multiple_of=pad_to_multiple_of,
        device=device,
        whose="the first broken batches'" if len(broken_E) > len(looked_at_E) else "the broken batches'",
    )


def name_some(origins: Sequence[str]) -> str:
    """The first of some conversations, and how many more there are."""
    named = ", ".join(origins[:_MAX_NAMED])
    num_more = len(origins) - _MAX_NAMED
    return f"{named} and {num_more} more" if num_more > 0 else named


class _Conversations:
    """The conversations of a global batch, each as a sequence of its own; everything else is that of the data set.

    Args:
        dataset: The data set.
        batch_G: Indices of the batch's sequences.
        bounds: Number of the first conversation of each sequence, and the number of all behind; shape [G + 1].
    """

    def __init__(self, dataset: BatchSource, batch_G: IntArray, *, bounds: IntArray) -> None:
        self._dataset = dataset
        self._batch_G = batch_G
        self._bounds = bounds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)

    def _targets(self, number: int) -> tuple[PackedTargets, slice]:
        """The sequence of a conversation, and the conversation's positions in it."""
        place = int(np.searchsorted(self._bounds, number, "right")) - 1
        index_B = self._batch_G[place : place + 1]
        targets = self._dataset.batch(index_B, length=int(self._dataset.num_positions_of(index_B)[0]))
        first, last = targets.segments_C2[number - self._bounds[place]].tolist()
        return targets, slice(first, last)

    def num_positions_of(self, numbers_B: IntArray) -> IntArray:
        """Positions of some conversations."""
        return np.diff([(here.start, here.stop) for _, here in map(self._targets, numbers_B.tolist())])[:, 0]

    def num_units_of(self, numbers_B: IntArray) -> IntArray:
        """Nothing is divided."""
        return np.zeros(len(numbers_B), dtype=np.int64)

    def batch(self, numbers_B: IntArray, *, length: int) -> PackedTargets:
        """One conversation, padded to a length."""
        [number] = numbers_B.tolist()
        targets, here = self._targets(number)
        num_positions = here.stop - here.start
        padding = (0, length - num_positions)
        loss_mask = targets.loss_mask_BS[0, here]
        return PackedTargets(
            input_ids_BS=np.pad(targets.input_ids_BS[0, here], padding)[None],
            labels_BS=np.pad(targets.labels_BS[0, here], padding)[None],
            loss_mask_BS=np.pad(loss_mask, padding)[None],
            position_ids_BS=np.arange(length)[None],
            segments_C2=np.array([[0, num_positions]], dtype=np.int32),
            groups_N=np.zeros(np.count_nonzero(loss_mask), dtype=np.int32),
        )
